# Runs on the control host: take, renew or release the lock under /run. Its lines: an id, when it
# lapses (seconds since the epoch), since when it is held, and who holds it, as JSON that is not
# read here: importing json takes as long as all of this does.
import fcntl
import os
import sys
import time

FOLDER = "/run/rackserve"
LOCK = f"{FOLDER}/lock"
SINCE = "%Y-%m-%dT%H:%M:%S+00:00"


def read():
    try:
        with open(LOCK) as file:
            holder, expires, since, who = file.read().split("\n")
        return holder, float(expires), since, who
    except (FileNotFoundError, ValueError):
        return None


def write(*lines):
    with open(f"{LOCK}.new", "w") as file:
        file.write("\n".join(map(str, lines)))
    os.replace(f"{LOCK}.new", LOCK)


def main(action, run, ttl, who="", gone=""):
    """0, or 1 and who holds the lock. `gone` is the id of a run that is known to have ended.

    One that the host lost by a reboot is there again when it is renewed; one that was taken away is not.

    Taking it prints for how many seconds nobody has held it, as far as is known.
    """
    os.makedirs(FOLDER, exist_ok=True)
    released = f"{FOLDER}/released"  # when it was last modified
    rebooted = not os.path.exists(f"{FOLDER}/guard")
    with open(f"{FOLDER}/guard", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        holder, expires, since, whose = read() or ("", 0, "", "")
        if action == "take":
            if holder not in ("", run, gone) and expires >= time.time():
                print(holder, expires, since, whose, sep="\n")
                return 1
            known = not holder and os.path.exists(released)
            print(max(0, time.time() - os.path.getmtime(released)) if known else 0)
            write(run, time.time() + float(ttl), time.strftime(SINCE, time.gmtime()), who)
        elif action == "renew" and rebooted:
            write(run, time.time() + float(ttl), time.strftime(SINCE, time.gmtime()), who)
        elif holder != run:
            print(holder, expires, since, whose, sep="\n")
            return 1
        elif action == "renew":
            write(holder, time.time() + float(ttl), since, whose)
        elif action == "release":
            os.unlink(LOCK)
            open(released, "w").close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Runs on the control host: take, renew or release the lock under /run."""

import fcntl
import json
import os
import sys
import time
from datetime import datetime, timezone

FOLDER = "/run/rackserve"
LOCK = f"{FOLDER}/lock"


def read():
    try:
        with open(LOCK) as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def write(lock):
    with open(f"{LOCK}.new", "w") as file:
        json.dump(lock, file)
    os.replace(f"{LOCK}.new", LOCK)


def main(action, run, ttl):
    os.makedirs(FOLDER, exist_ok=True)
    with open(f"{FOLDER}/guard", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        holder = read()
        ours = holder is not None and holder["id"] == run["id"]
        if action == "take":
            free = holder is None or ours or holder["expires"] < time.time()
            if not free and holder["id"] not in run["gone"]:
                print(json.dumps(holder))
                return 1
            since = datetime.now(timezone.utc).isoformat(timespec="seconds")
            run.pop("gone", None)
            write({**run, "since": since, "expires": time.time() + ttl})
        elif not ours:
            print(json.dumps(holder))
            return 1
        elif action == "renew":
            write({**holder, "expires": time.time() + ttl})
        elif action == "release":
            os.unlink(LOCK)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])))

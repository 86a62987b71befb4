"""Runs on a node, as root, on its own Python (3.9 and newer): the releases of replicas.

release.py look                 what is kept, in place and running of each replica, as JSON
release.py show REPLICA         the files in place that hold no secret, as JSON
release.py keep REPLICA ID      a release comes by stdin, and is put by
release.py put REPLICA ID       it is put in place; what was there is stopped and goes
release.py put REPLICA -        nothing of the replica stays in place
release.py prove REPLICA ID     it was seen to generate; its answer comes by stdin

A release is one file, so that it is there whole or not at all: what it is (models.rollout.Release), and
its files here as [path, owner, mode, secret, content].
"""

import glob
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress

ETC = os.environ.get("RACKSERVE_ETC", "/etc/rackserve")
RUN = os.environ.get("RACKSERVE_RUN", "/run/rackserve")
SYSTEMD = os.environ.get("RACKSERVE_SYSTEMD", "/etc/systemd/system")
KEPT = f"{ETC}/releases"
LAST = 4  # releases of a replica that are kept beside the one in place and the last that was proven
PROPERTIES = "Id,ActiveState,UnitFileState,NeedDaemonReload,ExecMainStartTimestampMonotonic"


def main(verb, *words):
    if verb in ("look", "show"):
        print(json.dumps({"look": look, "show": show}[verb](*words)))
    else:
        {"keep": keep, "put": put, "prove": prove}[verb](*words)


def look():
    folders = glob.glob(f"{KEPT}/*/") + glob.glob(f"{ETC}/*replica-*/")
    names = sorted({os.path.basename(path.rstrip("/")) for path in folders})
    return {name: seen(name) for name in names}


def seen(replica):
    id = installed(replica)
    kept = {name: one for name in stored(replica) if (one := load(replica, name))}
    here = kept.get(id)
    return {
        "there": os.path.isdir(f"{ETC}/{replica}") or bool(units(replica)),
        "installed": id,
        "settled": bool(here) and all(map(intact, here["files"])) and runs(replica, here),
        "up": (parsed(f"{RUN}/{replica}/state.json") or {}).get("state") == "up",
        "kept": {
            name: {"release": one["release"], **(proof(replica, name) or {"proven": 0, "answer": ""})}
            for name, one in kept.items()
        },
    }


def show(replica):
    here = load(replica, installed(replica)) or {"files": []}
    files = {path: secret for path, _, _, secret, _ in here["files"]}
    return {path: read(path) or "" for path, secret in files.items() if not secret}


def keep(replica, id):
    folder = f"{KEPT}/{replica}"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write(f"{folder}/{id}.json", sys.stdin.read(), "root:root", "600")
    safe = {id, installed(replica), *last_proven(replica)}
    for name in stored(replica)[LAST:]:
        if name not in safe:
            remove(f"{folder}/{name}.json")
            remove(f"{folder}/{name}.proven")


def put(replica, id):
    new = [] if id == "-" else (load(replica, id) or sys.exit(f"{replica} has no release {id} here"))["files"]
    old = (load(replica, installed(replica)) or {"files": []})["files"]
    remove(f"{ETC}/{replica}/release")  # a put that breaks off is seen, and done again
    if units(replica):
        run("systemctl", "stop", *map(os.path.basename, units(replica)))
    stays = {path for path, *_ in new}
    gone = [path for path in {*units(replica), *(path for path, *_ in old)} if path not in stays]
    names = [os.path.basename(path) for path in gone if path.endswith(".service")]
    if names:
        run("systemctl", "disable", "--quiet", *names)
    for path in gone:
        remove(path)
    if not new:
        shutil.rmtree(f"{ETC}/{replica}", ignore_errors=True)
    for path, owner, mode, _, content in new:
        write(path, content, owner, mode)
    run("systemctl", "daemon-reload")
    if names:
        subprocess.run(["systemctl", "reset-failed", *names], stderr=subprocess.DEVNULL)
    if new:
        write(f"{ETC}/{replica}/release", f"{id}\n", "root:root", "644")


def prove(replica, id):
    said = {"proven": time.time(), "answer": sys.stdin.read().rstrip("\n")}
    write(f"{KEPT}/{replica}/{id}.proven", json.dumps(said), "root:root", "600")


def installed(replica):
    return (read(f"{ETC}/{replica}/release") or "").strip()


def stored(replica):
    """The ids of what is put by, the newest first."""
    files = sorted(glob.glob(f"{KEPT}/{replica}/*.json"), key=os.path.getmtime, reverse=True)
    return [os.path.basename(path)[: -len(".json")] for path in files]


def last_proven(replica):
    """The two that were proven last: the one in place, and what it goes back to."""
    proofs = {id: proof(replica, id) for id in stored(replica)}
    proven = sorted((one["proven"], id) for id, one in proofs.items() if one)
    return [id for _, id in proven[-2:]]


def proof(replica, id):
    return parsed(f"{KEPT}/{replica}/{id}.proven")


def load(replica, id):
    return parsed(f"{KEPT}/{replica}/{id}.json") if id else None


def intact(file):
    path, owner, mode, _, content = file
    try:
        there = os.lstat(path)
    except OSError:
        return False
    return read(path) == content and f"{there.st_mode & 0o7777:o}" == mode and same_owner(there, owner)


def same_owner(there, owner):
    import grp
    import pwd

    user, group = owner.split(":")
    try:
        return (there.st_uid, there.st_gid) == (pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)
    except KeyError:
        return False


def runs(replica, here):
    """Its gang is kept running, and no process of it is older than the weights it is to have."""
    names = list(map(os.path.basename, units(replica)))
    command = ["systemctl", "show", f"--property={PROPERTIES}", *names]
    said = subprocess.run(command, capture_output=True, text=True).stdout if names else ""
    shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in said.split("\n\n")]
    gang = [one for one in shown if one.get("Id", "").endswith("-gang.service")]
    kept = any(one["ActiveState"] == "active" and one["UnitFileState"] == "enabled" for one in gang)
    if not kept or any(one.get("NeedDaemonReload") == "yes" for one in shown):
        return False
    try:
        changed = os.lstat(here["release"]["model"]).st_mtime
    except OSError:
        return True  # a folder that is gone is staging's to say
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    starts = [int(one.get("ExecMainStartTimestampMonotonic") or 0) for one in shown if one not in gang]
    return all(booted + start / 1e6 > changed for start in starts if start)


def units(replica):
    return sorted(glob.glob(f"{SYSTEMD}/rackserve-{replica}-*.service"))


def parsed(path):
    try:
        return json.loads(read(path) or "null")
    except ValueError:
        return None


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def write(path, content, owner, mode):
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(
        os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if os.geteuid() == 0:
        shutil.chown(f"{path}.new", *owner.split(":"))
    os.chmod(f"{path}.new", int(mode, 8))
    os.replace(f"{path}.new", path)


def remove(path):
    with suppress(FileNotFoundError):
        os.unlink(path)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


if __name__ == "__main__":
    main(*sys.argv[1:])

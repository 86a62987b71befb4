"""Runs on a gateway's host, as root, on its own Python: HAProxy's runtime API.

admin.py servers           the replicas' states and sessions, as JSON
admin.py drain|ready NAME  no new request for a replica; requests again
admin.py reload PID        HAProxy's master of that id goes on with the file as it is now
"""

import csv
import json
import os
import re
import signal
import socket
import sys
import time

CONFIG = "/etc/rackserve/gateway/haproxy.cfg"
RUN = "/run/rackserve-gateway"

PATIENCE = 30  # seconds for HAProxy to start anew

#: Not HAProxy's own "drain", which lets requests of known sessions in. Requests that run end as they would.
STATES = {"drain": "maint", "ready": "ready"}


def main(verb, name=None, run=RUN, config=CONFIG):
    if verb == "servers":
        print(json.dumps(servers(run)))
    elif name is None or verb not in ("reload", *STATES):
        sys.exit(__doc__)
    elif verb == "reload":
        reload(run, config, int(name))
    else:
        now = current(run)
        backend = rows(ask(run, now, "show stat")).get(name, {}).get("backend", "replicas")
        said = ask(run, now, f"set server {backend}/{name} state {STATES[verb]}")
        if said:
            sys.exit(said)
        save(run, config)


def servers(run):
    """Sessions are those that have a connection to the replica; requests in its queue have none yet.

    With those of HAProxies of before a reload, which end their last answers: they do not take orders
    any more, and what waits there for a replica will still go to it.
    """
    now, ending = processes(run)
    seen = rows(ask(run, now[0], "show stat"))
    for pid in ending:
        for name, row in rows(ask(run, pid, "show stat")).items():
            if name in seen:
                seen[name]["sessions"] += row["sessions"] + row["queued"]
    return list(seen.values())


def rows(stat):
    return {
        row["svname"]: {
            "name": row["svname"],
            "backend": row["pxname"],  # one for each model
            "status": row["status"],  # UP, DOWN, MAINT, "UP 1/3", "DOWN (agent)"
            "in": not row["status"].startswith("MAINT"),
            "checked": row["check_status"] != "INI",  # until it is, UP is only what is hoped
            "down": int(row["downtime"] or 0),  # seconds
            "sessions": int(row["scur"]),
            "queued": int(row["qcur"]),
            "requests": int(row["stot"]),
            "errors": sum(int(row[name] or 0) for name in ("econ", "eresp", "hrsp_5xx")),
        }
        for row in csv.DictReader(stat.removeprefix("# ").splitlines())
        if row["pxname"].startswith("replicas") and row["svname"] not in ("FRONTEND", "BACKEND")
    }


def current(run):
    return processes(run)[0][0]


def processes(run):
    """The ids of who takes requests, first the newest, and of those of before a reload that still answer."""
    now, _, old = master(run, "show proc").partition("# old workers")
    return [re.findall(r"(?m)^(\d+)\s+worker", said) for said in (now, old)]


def reload(run, config, pid):
    """Ends when a new process takes orders: until then they would go to one that is about to end.

    It begins with what the one before saw of each replica. Else a check that is late takes one out, and
    who is gone has requests until the first.
    """
    save(run, config, seen=True)
    before = processes(run)[0]
    os.kill(pid, signal.SIGUSR2)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            now = processes(run)[0]
            loaded = now and now != before and ask(run, now[0], "show info").startswith("Name:")
        except OSError:  # the master is about to start itself anew
            loaded = False
        if loaded:
            save(run, config)
            return
        if time.monotonic() > until:
            sys.exit(f"HAProxy has not loaded {config} after {PATIENCE} s: see its journal")
        time.sleep(0.1)


def save(run, config, seen=False):
    """Who is drained, after each change: a HAProxy that dies comes back with it. Or all that is `seen`.

    HAProxy would take ports from here too; they are the configuration's to say, and so is which backend
    one is in.
    """
    with open(config) as file:
        wanted = placed(file)
    version, names, *rows = ask(run, current(run), "show servers state").splitlines()
    kept = [version, names]
    for row in csv.DictReader([names.removeprefix("# "), *rows], delimiter=" "):
        if row["srv_name"] in wanted and (seen or row["srv_admin_state"] != "0"):
            kept.append(" ".join({**row, **wanted[row["srv_name"]]}.values()))
    new = f"{run}/servers.state.new"
    with open(new, "w") as file:
        file.write("\n".join(kept) + "\n")
    os.replace(new, f"{run}/servers.state")


def placed(lines):
    """{server: its backend and ports} of a configuration, in the words of HAProxy's state."""
    found, backend = {}, ""
    for line in lines:
        words = line.split()
        if words[:1] == ["backend"]:
            backend = words[1]
        elif words[:1] == ["server"]:
            said = dict(zip(words[3::2], words[4::2], strict=False))
            found[words[1]] = {
                "be_name": backend,
                "srv_port": words[2].rpartition(":")[2],
                "srv_agent_port": said.get("agent-port", "0"),
            }
    return found


def ask(run, pid, command):
    """One of HAProxy's processes, and no other: on their own socket whoever has it just then would answer."""
    return master(run, f"@!{pid} {command}")


def master(run, command):
    with connected(f"{run}/master.sock") as connection:
        connection.sendall(f"{command}; quit\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode().strip()


def connected(path):
    """While HAProxy starts itself anew its queue may be full (EAGAIN): a moment later it is not."""
    until = time.monotonic() + PATIENCE
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(10)
        try:
            connection.connect(path)
            return connection
        except OSError as error:
            connection.close()
            if not isinstance(error, BlockingIOError) or time.monotonic() > until:
                raise
        time.sleep(0.1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:] or [""])
    except OSError as error:
        sys.exit(f"{error.strerror}: does a gateway run here?")

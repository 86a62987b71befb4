"""Runs on a gateway's host, as root, on its own Python: HAProxy's runtime API.

admin.py servers           the replicas' states and sessions, as JSON
admin.py drain|ready NAME  no new request for a replica; requests again
admin.py save              what a reload is to start from
"""

import csv
import json
import os
import re
import socket
import sys

CONFIG = "/etc/rackserve/gateway/haproxy.cfg"
RUN = "/run/rackserve-gateway"

#: Not HAProxy's own "drain", which lets requests of known sessions in. Requests that run end as they would.
STATES = {"drain": "maint", "ready": "ready"}


def main(verb, name=None, run=RUN, config=CONFIG):
    if verb == "servers":
        print(json.dumps(servers(run)))
    elif verb == "save":
        save(run, config)
    else:
        said = ask(run, f"set server replicas/{name} state {STATES[verb]}")
        if said:
            sys.exit(said)
        save(run, config)


def servers(run):
    """Sessions are those that have a connection to the replica; requests in its queue have none yet.

    With those of HAProxies of before a reload, which end their last answers: they do not take orders
    any more, and what waits there for a replica will still go to it.
    """
    seen = rows(ask(run, "show stat"))
    for pid in ending(run):
        for name, row in rows(ask(run, f"@!{pid} show stat; quit", "master.sock")).items():
            if name in seen:
                seen[name]["sessions"] += row["sessions"] + row["queued"]
    return list(seen.values())


def rows(stat):
    return {
        row["svname"]: {
            "name": row["svname"],
            "status": row["status"],  # UP, DOWN, MAINT, "UP 1/3", "DOWN (agent)"
            "in": not row["status"].startswith("MAINT"),
            "sessions": int(row["scur"]),
            "queued": int(row["qcur"]),
            "requests": int(row["stot"]),
            "errors": sum(int(row[name] or 0) for name in ("econ", "eresp", "hrsp_5xx")),
        }
        for row in csv.DictReader(stat.removeprefix("# ").splitlines())
        if row["pxname"] == "replicas" and row["svname"] not in ("FRONTEND", "BACKEND")
    }


def ending(run):
    """The processes of before a reload that still answer."""
    _, _, old = ask(run, "show proc; quit", "master.sock").partition("# old workers")
    return re.findall(r"(?m)^(\d+)\s+worker", old)


def save(run, config):
    """Also after each change: a HAProxy that dies comes back as it was.

    Only who is drained is kept: whether the others are well is seen at once. HAProxy would take ports
    from here too; they are the configuration's to say.
    """
    with open(config) as file:
        ports = dict(re.findall(r"^ *server (\S+) \S+:(\d+)", file.read(), re.MULTILINE))
    version, names, *rows = ask(run, "show servers state").splitlines()
    kept = [version, names]
    for row in csv.DictReader([names.removeprefix("# "), *rows], delimiter=" "):
        if row["srv_admin_state"] != "0" and row["srv_name"] in ports:
            kept.append(" ".join({**row, "srv_port": ports[row["srv_name"]]}.values()))
    new = f"{run}/servers.state.new"
    with open(new, "w") as file:
        file.write("\n".join(kept) + "\n")
    os.replace(new, f"{run}/servers.state")


def ask(run, command, of="admin.sock"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(f"{run}/{of}")
        connection.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode().strip()


if __name__ == "__main__":
    main(*sys.argv[1:])

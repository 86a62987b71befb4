"""Runs on a node, as root, on its own Python: what is served here, as JSON.

One entry for each unit of a replica or of the gateway on this host. The API key is among
it, for `rackserve chat`; it is never printed.
"""

import glob
import json
import os
import re
import subprocess
import sys

UNITS = "/etc/systemd/system/rackserve-*.service"
PROPERTIES = "ActiveState,SubState,NRestarts,ExecMainStartTimestamp"


def main():
    print(json.dumps([unit(path) for path in sorted(glob.glob(UNITS))]))


def unit(path):
    name = os.path.basename(path)
    replica, part = re.fullmatch(r"rackserve-(.+)-(\w+)\.service", name).groups()
    show = ["systemctl", "show", name, "--timestamp=utc", f"--property={PROPERTIES}"]
    shown = dict(line.split("=", 1) for line in output(show).splitlines())
    return {
        "unit": name, "replica": replica, "part": part,
        "active": shown.get("ActiveState"), "sub": shown.get("SubState"),
        "restarts": int(shown.get("NRestarts") or 0),
        "since": shown.get("ExecMainStartTimestamp", "").partition(" ")[2],  # after the day of the week
        **(endpoint(f"/etc/rackserve/{replica}") if part == "vllm" else {}),
        **(gateway(f"/etc/rackserve/{replica}") if part == "haproxy" else {}),
        **(gang(f"/run/rackserve/{replica}") if part == "gang" else {}),
    }  # fmt: skip


def endpoint(folder):
    """Port, model and key of a vLLM that has an API; a headless rank has none."""
    config, secrets = read(f"{folder}/vllm.yaml", ": "), read(f"{folder}/vllm.env", "=")
    if config.get("headless") == "true":
        return {}
    return {
        "port": int(config.get("port", 0)),
        "model": config.get("served-model-name"),
        "split": f"TP {config.get('tensor-parallel-size')} x PP {config.get('pipeline-parallel-size')}",
        "key": secrets.get("VLLM_API_KEY"),
    }


def gateway(folder):
    """The port of the gateway's API, and how it sees each replica."""
    config = read(f"{folder}/haproxy.cfg", " bind :")
    servers = output([sys.executable, "/opt/rackserve/libexec/gateway.py", "servers"])
    return {"gateway": int(next(iter(config.values()), 0)), "servers": json.loads(servers or "[]")}


def gang(folder):
    """How the replica is, as its head says; other nodes have no such file."""
    try:
        with open(f"{folder}/state.json") as file:
            return {"gang": json.load(file)}
    except FileNotFoundError:
        return {}


def read(path, separator):
    try:
        with open(path) as file:
            lines = [line.rstrip("\n") for line in file]
    except FileNotFoundError:
        return {}
    return dict(line.split(separator, 1) for line in lines if separator in line)


def output(command):
    return subprocess.run(command, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()

"""Runs on a node, as root, in the tools environment: does the server generate a token?

    probe.py URL SECRETS PATIENCE STATE UNIT...

Waits PATIENCE seconds at most for a server that listens: a process for each look would take
the time of a core that the server needs. STATE is the file in which the replica's gang says how it
is. Prints {"generates": bool, "falls": int, "reason": str} and exits 0; `reason` is what a person
would want to know: how the replica is, and the last telling line of a unit's journal.
"""

import json
import re
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

#: What vLLM and Ray put before a message: "(APIServer pid=1) INFO 11-23 01:55:47 [x.py:3] ".
PREFIX = re.compile(r"^(\(\w+[^)]*\) )*([A-Z]+ \d\d-\d\d [\d:]+ (\[[^]]*\] )?)?(ray\S* )?")

COLOR = re.compile(r"\x1b\[\d+m")

#: Messages worth repeating to a person, of progress or of failure.
TELLING = re.compile(
    r"[\w.]*(Error|Exception)\b.*|Failed to .*|Waiting for .*placement group.*"
    r"|Starting to load model.*|Loading (safetensors|weights).*|torch.compile takes.*"
    r"|GPU KV cache size.*|.*(connected|registered) to all peer nodes.*"
)


LOOK = 0.3  # seconds between two looks for a listener


def main(url, secrets, patience, state, *units):
    await_listener(url, float(patience))
    reason = ask(url, api_key(secrets))
    if reason is None:
        print(json.dumps({"generates": True, "falls": 0, "reason": ""}))
        return
    told = gang(state)
    reason = next(filter(None, (telling(unit, show(unit)) for unit in units)), reason)
    said = words(told)
    reason = f"{said}: {reason}" if said and said != reason else reason
    print(json.dumps({"generates": False, "falls": told.get("falls", 0), "reason": reason}))


def gang(path):
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def words(told):
    """How the gang says the replica is; nothing that changes by itself."""
    state, why = told.get("state", ""), told.get("why", "")
    if state == "starting" and told["recent"]:
        return f"starting again after {told['recent'][-1]['why']}"
    return f"{state} {why}".strip()


def await_listener(url, patience):
    until = time.monotonic() + patience
    while not listens(url) and time.monotonic() < until:
        time.sleep(LOOK)


def ask(url, key):
    """None when the server generated; else why not."""
    if not listens(url):
        return "starting"
    import requests  # late: it costs more than all else here, and we are asked every 2 s

    session = requests.Session()
    session.trust_env = False  # a proxy of the node is not for its own server
    session.headers["Authorization"] = f"Bearer {key}"
    try:
        models = session.get(f"{url}/v1/models", timeout=10)
        models.raise_for_status()
        name = models.json()["data"][0]["id"]
        body = {"model": name, "prompt": "1 2 3", "max_tokens": 1, "temperature": 0}
        answer = session.post(f"{url}/v1/completions", json=body, timeout=60)
        answer.raise_for_status()
        if answer.json()["usage"]["completion_tokens"] < 1:
            return "it answers without a token"
    except requests.ConnectionError:
        return "starting"
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def listens(url):
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=5):
            return True
    except OSError:
        return False


def api_key(secrets):
    with open(secrets) as file:
        return dict(line.rstrip("\n").split("=", 1) for line in file)["VLLM_API_KEY"]


def show(unit):
    command = ["systemctl", "show", unit, "--property=ActiveState,InvocationID"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def telling(unit, shown):
    command = ["journalctl", "-u", unit, "-o", "cat", "--no-pager", "-n", "400"]
    if shown.get("ActiveState") == "active":
        command.append(f"_SYSTEMD_INVOCATION_ID={shown['InvocationID']}")
    lines = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout.splitlines()
    for line in reversed(lines):
        message = PREFIX.sub("", COLOR.sub("", line))
        if TELLING.match(message) and "See root cause above" not in message:
            return message[:300]
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])

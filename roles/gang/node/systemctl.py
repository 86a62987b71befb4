"""Runs on a node, beside member.py: what is asked of systemd, one process for all units."""

import os
import subprocess

PROPERTIES = "Id,ActiveState,SubState,Result,ExecMainStatus,InvocationID,ControlGroup"
GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd")  # of version 2; of 1, and of both side by side
RUNS = ("active", "activating", "reloading")
PATIENCE = 120  # seconds for systemd; more than the TimeoutStopSec of any of our units

#: While one of these runs, an engine that takes no step may be waiting for its kernels.
COMPILERS = {
    "as", "c++", "cc1", "cc1plus", "cicc", "clang", "clang++", "cudafe++", "fatbinary", "g++", "gcc", "ld",
    "ninja", "nvcc", "nvlink", "ptxas",
}  # fmt: skip


def show(units):
    """{unit: its properties}; None when systemd does not say."""
    done = run("show", f"--property={PROPERTIES}", *units)
    blocks = (
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in done.stdout.strip().split("\n\n")
    )
    rows = {row["Id"]: row for row in blocks if "Id" in row}
    return rows if rows.keys() >= set(units) else None


def start(unit):
    """None, or why it did not start."""
    done = run("start", unit)
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split()) or f"systemctl start ended with {done.returncode}"


def stop(*units):
    """As their unit files say; returns when they have ended."""
    run("stop", *units)


def kill(*units):
    """All of their processes at once."""
    # Without --kill-whom=all, which it is anyway, and which is spelt --kill-who before systemd 252.
    run("kill", "--signal=KILL", *units)
    run("stop", *units)  # one that was about to start, too; and waits for the last process
    run("reset-failed", *units)


def run(*words):
    command = ["systemctl", *words]
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"systemctl {words[0]} took {PATIENCE} s")


def ended(row, invocation):
    """Why a unit is no longer the one that was started, or None."""
    name = row["Id"].rpartition(".")[0]
    if row["ActiveState"] in RUNS:
        return None if row.get("InvocationID") == invocation else f"{name} was restarted by somebody else"
    result, status = row.get("Result", ""), row.get("ExecMainStatus", "?")
    if result == "success":
        return f"{name} was stopped or ended by itself"
    how = {
        "signal": f"signal {status}", "core-dump": f"signal {status}, core dumped",
        "exit-code": f"status {status}", "oom-kill": "out of memory",
    }.get(result, result)  # fmt: skip
    return f"{name} ended ({how})"


def processes(row):
    """{id: (its parent's, its name, its title)} of a unit's processes, the title as in its arguments."""
    if not row.get("ControlGroup"):
        return {}
    pids = next(filter(None, (_read(f"{root}{row['ControlGroup']}/cgroup.procs") for root in GROUPS)), "")
    found = {}
    for pid in pids.split():
        _, _, said = _read(f"/proc/{pid}/stat").partition("(")
        name, _, numbers = said.rpartition(")")
        if numbers:
            found[pid] = (numbers.split()[1], name, _read(f"/proc/{pid}/cmdline").partition("\0")[0])
    return found


def are(processes, beginning):
    """How many of them have such a name or title.

    Without their children: until one is another program, it has its parent's, if only for a moment.
    """
    its = {pid for pid, (_, *names) in processes.items() if any(one.startswith(beginning) for one in names)}
    return sum(processes[pid][0] not in its for pid in its)


def compiles(processes):
    """Whether a compiler is among them."""
    return any(name in COMPILERS for _, name, _ in processes.values())


def _read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:  # it ended meanwhile
        return ""

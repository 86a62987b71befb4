"""What all hosts must have the same."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ..check import Host, Unclear, Verdict, check_across, failed, passed, warned
from ..parse import gpus, loaded_driver, size, version

Verdicts = Mapping[str, Verdict]
Say = Callable[..., Verdict]


def same(hosts: Sequence[Host], value_of: Callable[[Host], str], say: Say = failed) -> Verdicts:
    """Who has another value than most; of two, the second. Hosts without a value don't count."""
    values: dict[str, str] = {}
    for host in hosts:
        with suppress(Unclear, LookupError, TypeError, AttributeError):
            if value := value_of(host):
                values[host.name] = value
    if len(values) < 2:
        return {}
    usual, _ = Counter(values.values()).most_common(1)[0]
    theirs = [name for name, value in values.items() if value == usual]
    on = ", ".join(theirs[:3]) + (f" and {len(theirs) - 3} more" if len(theirs) > 3 else "")
    return {
        name: passed(value) if value == usual else say(f"{value}; {usual} on {on}")
        for name, value in values.items()
    }


def same_of_model(hosts: Sequence[Host], value_of: Callable[[Host], str]) -> Verdicts:
    """`same` among the hosts of each model; those that serve none are compared with each other."""
    models = dict.fromkeys(host.expected.weights for host in hosts)
    found = [same([host for host in hosts if host.expected.weights == model], value_of) for model in models]
    return {name: verdict for verdicts in found for name, verdict in verdicts.items()}


@check_across(
    "same.driver",
    "One driver version",
    looks_at="/proc/driver/nvidia/version",
    fix="`driver` of {host} to the others' version in the inventory; rackserve rollout --reboot due",
    reference="shine-cluster#30",
    gpus_only=True,
)
def driver(hosts: Sequence[Host]) -> Verdicts:
    return same(hosts, lambda host: loaded_driver(host.get("driver")))


@check_across(
    "same.gpu",
    "One model of GPU for a model that is served",
    looks_at="nvidia-smi -q: Product Name",
    fix="make replicas of hosts that are alike: give each kind a model of its own (docs/gateway.md)",
    reference="sparkrun#137",
    gpus_only=True,
)
def gpu(hosts: Sequence[Host]) -> Verdicts:
    def names(host: Host) -> str:
        return ", ".join(sorted({one["Product Name"] for one in gpus(host.get("nvidia_smi"))}))

    return same_of_model(hosts, names)


@check_across(
    "same.environment",
    "One environment, package by package",
    looks_at="names and versions in vLLM's environment",
    fix="rackserve deploy provision",
    reference="gpustack#2691",
)
def environment(hosts: Sequence[Host]) -> Verdicts:
    by_name = {host.name: host for host in hosts}

    def fingerprint(host: Host) -> str:
        installed = host.get("installed")
        return hashlib.sha256("\n".join(installed).encode()).hexdigest()[:12] if installed else ""

    found = dict(same(hosts, fingerprint))
    right = [by_name[name] for name, verdict in found.items() if verdict.status == "pass"]
    for name, verdict in found.items():
        if verdict.status == "fail" and right:
            theirs, own = set(right[0].get("installed")), set(by_name[name].get("installed"))
            differing = sorted([f"{one} only here" for one in own - theirs]
                               + [f"{one} only on {right[0].name}" for one in theirs - own])  # fmt: skip
            found[name] = failed(f"{len(differing)} differ: {', '.join(differing[:3])}")
    return found


@check_across(
    "same.python",
    "One Python, to the patch",
    looks_at="python -V of vLLM's environment",
    fix="rackserve deploy provision, after the same apt-get upgrade on every host",
    reference="ray#44063",
)
def python(hosts: Sequence[Host]) -> Verdicts:
    return same(hosts, lambda host: host.get("python").strip())


def _package(name: str) -> Callable[[Host], str]:
    return lambda host: version(host.get("installed"), name)


@check_across(
    "same.ray",
    "One Ray",
    looks_at="vLLM's environment",
    fix="rackserve deploy provision",
    reference="gpustack#1640",
)
def ray(hosts: Sequence[Host]) -> Verdicts:
    return same(hosts, _package("ray"))


@check_across(
    "same.nccl",
    "One NCCL",
    looks_at="vLLM's environment",
    fix="rackserve deploy provision",
    reference="nccl#1524",
    gpus_only=True,
)
def nccl(hosts: Sequence[Host]) -> Verdicts:
    return same(hosts, _package("nvidia-nccl-cu13"))


@check_across(
    "same.weights",
    "One snapshot of the model",
    looks_at="names and sizes in the model's folder",
    fix="rackserve stage",
    reference="vllm#10886",
)
def weights(hosts: Sequence[Host]) -> Verdicts:
    def snapshot(host: Host) -> str:
        there = host.get("weights")
        if not there["files"]:
            return "nothing staged"
        return f"{there['files']} files, {size(there['bytes'])} ({there['digest'][:8]})"

    return same_of_model(hosts, snapshot)


@check_across(
    "same.mtu",
    "One MTU",
    looks_at="ip address",
    fix="sudo ip link set {interface} mtu N, and keep it in the network's configuration of {host}",
    reference="nccl#1524",
)
def mtu(hosts: Sequence[Host]) -> Verdicts:
    return same(hosts, lambda host: f"MTU {host.get('net')['mtu']}")


@check_across(
    "same.speed",
    "Interfaces of one speed",
    looks_at="/sys/class/net/*/speed",
    fix="ethtool {interface} on {host}: cable, transceiver, the switch's port",
    reference="sparkrun#135",
)
def speed(hosts: Sequence[Host]) -> Verdicts:
    def mbits(host: Host) -> str:
        text = (host.get("net")["speed"] or "").strip()
        return f"{text} Mbit/s" if text.isdigit() else ""

    return same(hosts, mbits, say=warned)


@check_across(
    "same.ports",
    "As many InfiniBand ports, of one rate, for a model that is served",
    looks_at="/sys/class/infiniband",
    fix="ibstat on {host}; check cables and cards",
    reference="sparkrun#137",
    gpus_only=True,
)
def ports(hosts: Sequence[Host]) -> Verdicts:
    def rates(host: Host) -> str:
        found = [port["rate"] for port in host.get("infiniband").values() if "ACTIVE" in port["state"]]
        counted = sorted(Counter(found).items())
        return ", ".join(f"{number} x {rate}" for rate, number in counted) or "no active port"

    found = same_of_model(hosts, rates)
    return {name: verdict for name, verdict in found.items() if verdict != passed("no active port")}


@check_across(
    "same.clock",
    "One time",
    looks_at="each host's clock, within what asking for it took",
    fix="sudo apt-get install -y chrony on {host}",
    reference="canonical/lxd#7321",
)
def clock(hosts: Sequence[Host]) -> Verdicts:
    verdicts = {}
    for host in hosts:
        said = f"{host.offset:+.1f} s from this machine's"
        verdicts[host.name] = (
            failed(said) if abs(host.offset) > 30 else warned(said) if abs(host.offset) > 2 else passed(said)
        )
    return verdicts

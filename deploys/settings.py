"""What a user may set, for the cluster and for each host: names, defaults, checks.

Values come from the inventory's host and group data and from `--data`, as pyinfra's
`host.data`; this is the one list of their names.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address
from typing import Any

from models.errors import InventoryError

EXECUTORS = ("auto", "ray", "mp")
RUNTIMES = ("cuda", "cpu")
OPTIMIZE = ("latency", "throughput")
ANSWERS = ("same", "any")
REBOOT = ("no", "due", "all")
IOMMU = ("pt",)
DRIVER_SOURCES = ("auto", "nvidia", "ubuntu")

#: What may differ between hosts.
PER_HOST = ("plugins", "wheelhouse", "hf_endpoint", "hf_token", "mirror", "mirror_options", "uplink",
            "address", "interface", "hcas", "gpu", "gpus", "driver", "driver_source", "governor",
            "iommu", "doca_ofed")  # fmt: skip

#: What may differ between hosts that serve different models.
PER_MODEL = ("model", "revision", "weights_path", "preset", "context", "concurrency", "optimize", "replicas",
             "tensor_parallel", "pipeline_parallel", "executor", "port", "vllm_args", "vllm_env")  # fmt: skip

#: What is text where it is set. A secret is not: api_key has a check of its own.
TEXT = ("model", "revision", "weights_path", "preset", "plugins", "wheelhouse", "hf_endpoint", "mirror",
        "interface", "gpu")  # fmt: skip

#: NCCL's `^` and its rails and planes are not among them.
HCAS = r"[A-Za-z][\w.-]*(:\d+)?( *, *[A-Za-z][\w.-]*(:\d+)?)*"

#: Seconds: the gateway takes a replica out after 20, and only then it may start anew.
LEAST_HANG = 25

#: See models.plan.Ports.
TAKEN_PORTS = range(20000, 32768)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One host's settings: those in PER_HOST its own, in PER_MODEL its model's, the others everyone's."""

    # What to serve
    model: str = ""  # a name of `rackserve models`, ORG/NAME of the hub, or a folder with weights_path
    revision: str | None = None  # branch, tag or commit; the model's own unless set
    weights_path: str | None = None  # a snapshot that is on every node already
    preset: str | None = None  # latency, throughput or long-context: the model's own arguments unless set
    context: int | None = None  # tokens of a request; the most that fit unless set
    concurrency: int = 1  # requests of that length that must fit at once
    optimize: str | None = None  # latency or throughput: chooses the split, and the preset
    replicas: int | None = None  # one; with `optimize` as many as are best for it
    tensor_parallel: int | None = None  # GPUs of a node unless set
    pipeline_parallel: int | None = None  # nodes of a replica unless set
    executor: str = "auto"  # across nodes: ray (auto), or mp, vLLM's own
    port: int = 8000
    vllm_args: Mapping[str, Any] = field(default_factory=dict)  # long flag names
    vllm_env: Mapping[str, str] = field(default_factory=dict)
    gateway: bool | str | Sequence[str] = False  # one endpoint for all replicas: True (the head), or hosts
    gateway_port: int = 8080
    api_key: str | None = field(default=None, repr=False)  # made on the head unless set
    ready_timeout: int = 7200  # seconds from start to the first token
    hang_timeout: int = 60  # seconds without a token after which a replica starts anew

    # How a replica that answers is replaced
    drain_timeout: int = 600  # seconds for its running answers
    cut: bool = False  # what runs on after that is cut; else the run ends, and the replica goes on
    watch: int = 30  # seconds that the first is looked at beside the others; a third of it for each other
    answers: str = "same"  # as before with the same weights; or any
    degraded: bool = False  # go on although another replica is down
    reboot: str = "no"  # while it is out, of its nodes those on which one is due, or all

    # What to serve it with
    runtime: str = "cuda"  # or cpu
    plugins: str | None = None  # a lock file of packages to add to vLLM's environment
    wheelhouse: str | None = None  # a folder or URL; then no package index is asked
    hf_endpoint: str | None = None
    hf_token: str | None = field(default=None, repr=False)  # HF_TOKEN unless set
    mirror: str | None = field(default=None, repr=False)  # instead of the hub: a folder, http(s):// or s3://
    mirror_options: Mapping[str, str] = field(default_factory=dict, repr=False)  # see docs/weights.md

    roce_traffic_class: int | None = None  # what the switches make lossless; 104 is DSCP 26

    # Each host
    uplink: bool = False  # it downloads; the first of the plan unless some host says so
    address: str = ""  # on the network between the nodes; ssh_hostname unless set
    interface: str | None = None  # of that address; found on the node unless set
    hcas: str | bool = "auto"  # those near GPUs; or names, as mlx5_0,mlx5_1:1; False: NCCL goes over TCP
    gpus: int = 8
    gpu: str | None = None  # a name of models/hardware.py; without it no memory is planned
    driver: str | bool = "auto"  # NVIDIA's branch, or a version; 580 where none is loaded; False: it is yours
    driver_source: str = "auto"  # nvidia, or ubuntu: signed modules; auto is ubuntu where Secure Boot is on
    governor: str | bool = "performance"  # of the CPUs' clocks, on hosts with GPUs; False: as they are
    iommu: str | None = None  # pt: it passes through, from the next boot on; left alone unless set
    doca_ofed: str | None = None  # a release of DOCA, as 3.2.1: NVIDIA's OFED; the distribution's unless set

    def __post_init__(self) -> None:
        for name in TEXT:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InventoryError(f"{name} is {value!r}: must be text")
        if self.revision in ("", ".", "..", "commits"):  # the last is a folder beside: see stage.py
            raise InventoryError(f"revision is {self.revision!r}: give a commit, in 40 digits")
        _one_of("executor", self.executor, EXECUTORS)
        _one_of("runtime", self.runtime, RUNTIMES)
        _one_of("answers", self.answers, ANSWERS)
        _one_of("reboot", self.reboot, REBOOT)
        _one_of("driver_source", self.driver_source, DRIVER_SOURCES)
        asked = self.driver if isinstance(self.driver, str) else ""
        if self.driver is not False and not re.fullmatch(r"auto|\d{3}(\.\d+)*", asked):
            said = f"driver is {self.driver!r}"
            raise InventoryError(f"{said}: must be a branch or a version, in quotes, or auto, or False")
        if self.iommu is not None:
            _one_of("iommu", self.iommu, IOMMU)
        ofed = self.doca_ofed
        if ofed is not None and not (isinstance(ofed, str) and re.fullmatch(r"\d+\.\d+\.\d+", ofed)):
            raise InventoryError(f"doca_ofed is {ofed!r}: must be a release of DOCA in quotes, as '3.2.1'")
        clocks = self.governor if isinstance(self.governor, str) else ""
        if self.governor is not False and not re.fullmatch(r"[a-z_]+", clocks):
            raise InventoryError(f"governor is {self.governor!r}: must be a name as performance, or False")
        named = self.hcas if isinstance(self.hcas, str) else ""
        if self.hcas is not False and not re.fullmatch(HCAS, named):
            said = f"hcas is {self.hcas!r}"
            raise InventoryError(f"{said}: must be names as mlx5_0,mlx5_1:1, or auto, or False")
        its = self.roce_traffic_class
        if its is not None and (type(its) is not int or not 0 <= its <= 255):
            raise InventoryError(f"roce_traffic_class is {its!r}: must be a whole number from 0 to 255")
        if self.optimize is not None:
            _one_of("optimize", self.optimize, OPTIMIZE)
        for name in ("concurrency", "port", "gateway_port", "ready_timeout"):
            _at_least(name, getattr(self, name), 1)
        for name in ("context", "replicas", "tensor_parallel", "pipeline_parallel"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("gpus", "drain_timeout", "watch"):
            _at_least(name, getattr(self, name), 0)
        _at_least("hang_timeout", self.hang_timeout, LEAST_HANG)
        _is_address(self.address)
        for name in ("vllm_args", "vllm_env"):
            if not isinstance(getattr(self, name), Mapping):
                raise InventoryError(f"{name} is {getattr(self, name)!r}: must be a dictionary")
        for name in ("uplink", "cut", "degraded"):
            if not isinstance(getattr(self, name), bool):
                raise InventoryError(f"{name} is {getattr(self, name)!r}: must be True or False")
        self._check_mirror_options()
        for name, value in self.vllm_env.items():
            if not isinstance(value, str):
                raise InventoryError(f"vllm_env: {name} is {value!r}: must be text, in quotes")
        for name in ("port", "gateway_port"):
            value = getattr(self, name)
            if value > 65535 or value in TAKEN_PORTS:
                raise InventoryError(
                    f"{name} is {value}: must be at most 65535, and not 20000 to 32767 (Ray, vLLM)"
                )
        hosts = [self.gateway] if isinstance(self.gateway, str) else self.gateway
        if not isinstance(hosts, bool) and not (
            isinstance(hosts, Sequence) and all(isinstance(name, str) for name in hosts)
        ):
            raise InventoryError(f"gateway is {self.gateway!r}: must be True, False, or names of hosts")
        if self.api_key is not None and not re.fullmatch(r"[\w.~+/=-]+", self.api_key):
            raise InventoryError("api_key: must be letters, digits and . ~ + / = _ - only")

    def _check_mirror_options(self) -> None:
        """Without showing any: there are secrets among them."""
        if not isinstance(self.mirror_options, Mapping):
            raise InventoryError("mirror_options: must be a dictionary")
        for name, value in self.mirror_options.items():
            if not isinstance(value, str):
                raise InventoryError(f"mirror_options: {name} must be text, in quotes")


SETTINGS = tuple(key.name for key in fields(Settings))


def settings(host_name: str, data: Mapping[str, Any]) -> Settings:
    """The settings in one host's data; InventoryError names the host and the key."""
    given = {name: data.get(name) for name in SETTINGS}
    known = {name: value for name, value in given.items() if value is not None}
    known.setdefault("address", data.get("ssh_hostname") or host_name.removeprefix("@"))
    known.setdefault("hf_token", os.environ.get("HF_TOKEN"))
    if type(known.get("driver")) is int:  # of --data driver=580
        known["driver"] = str(known["driver"])
    try:
        return Settings(**known)
    except InventoryError as error:
        raise InventoryError(f"{host_name}: {error}") from None


def check_same(hosts: Mapping[str, Settings]) -> None:
    """Raise InventoryError for a setting that two hosts have differently and must not."""
    first = next(iter(hosts))
    _check_alike(hosts, first, [key for key in SETTINGS if key not in (*PER_HOST, *PER_MODEL)])
    for names in pools(hosts).values():
        _check_alike({name: hosts[name] for name in names}, names[0], PER_MODEL)


def pools(hosts: Mapping[str, Settings]) -> dict[str, list[str]]:
    """{model: the hosts that serve it}, in the inventory's order.

    A model whose hosts have no GPUs is none, unless there is no other.
    """
    found: dict[str, list[str]] = {}
    for name, own in hosts.items():
        found.setdefault(own.model, []).append(name)
    serving = {model: names for model, names in found.items() if any(hosts[name].gpus for name in names)}
    return serving or found


def _check_alike(hosts: Mapping[str, Settings], first: str, keys: Iterable[str]) -> None:
    for name, key in ((name, key) for key in keys for name in hosts):
        if getattr(hosts[name], key) != getattr(hosts[first], key):
            raise InventoryError(f"{key} differs between {first} and {name}: set it for the group")


def check_names(given: Iterable[str]) -> None:
    """Raise InventoryError for a `--data` key that nothing reads: a typo changes nothing silently."""
    for name in given:
        if not _is_known(name):
            near = difflib.get_close_matches(name, SETTINGS, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "deploys/settings.py lists them"
            raise InventoryError(f"--data {name}: no such setting; {hint}")


def check_typos(host_name: str, given: Iterable[str]) -> None:
    """Raise InventoryError for a key of host or group data that is nearly a setting.

    Others may be the user's own.
    """
    for name in given:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), SETTINGS, n=1, cutoff=0.8)
        if near and not _is_known(name):
            raise InventoryError(f"{host_name}: {name}: no such setting; did you mean {near[0]}?")


def _is_known(name: str) -> bool:
    return name in SETTINGS or name.startswith(("ssh_", "_"))


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InventoryError(f"{name} is {value!r}: must be one of {', '.join(allowed)}")


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InventoryError(f"{name} is {value!r}: must be a whole number of at least {least}")


def _is_address(value: str) -> None:
    try:
        IPv4Address(value)
    except ValueError:
        raise InventoryError(f"address is {value!r}: must be an IPv4 address of the host") from None

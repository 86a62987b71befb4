"""What lines in the journals of vLLM, Ray, NCCL and the kernel mean: known causes, pure.

Each pattern was read in the program that prints the line; `source` says where (vLLM 0.32.0, Ray
2.60.0, NCCL 2.30, torch 2.13). The groups of a pattern are the numbers worth repeating.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A line that has a known cause."""

    id: str
    pattern: str
    cause: str
    fix: str
    reference: str
    source: str
    more: int = 0  # lines that go on with what it says


@dataclass(frozen=True)
class Cause:
    """A signature found in the journal of a host: its last line there, and how often it came."""

    host: str
    id: str
    cause: str
    evidence: str
    times: int
    fix: str
    reference: str


SIGNATURES = (
    Signature(
        id="log.placement",
        pattern=r"Waiting for creating a placement group of specs for (\d+) seconds",
        cause="Ray has not the GPUs that vLLM asks for: a node is missing, or its address is another one",
        fix="rackserve status; rackserve doctor: net.address, gpu.count, units.address",
        reference="vllm#13388",
        source="vllm/v1/executor/ray_utils.py:467",
    ),
    Signature(
        id="log.placement-failed",
        pattern=r"Cannot provide a placement group (?:requiring (\d+) GPUs|of)",
        cause="Ray never had the GPUs that vLLM asks for",
        fix="rackserve status; rackserve doctor: gpu.count, gpu.processes, units.strays",
        reference="vllm#7815",
        source="vllm/v1/executor/ray_utils.py:489",
    ),
    Signature(
        id="log.gloo-loopback",
        pattern=r"Gloo connectFullMesh failed|connect \[127\.\d+\.\d+\.\d+\]:\d+: Connection refused"
        r"|Unable to resolve hostname to a \(local\) address\. Using the loopback address as fallback",
        cause="Gloo takes an address on which the other nodes do not reach it, as loopback",
        fix="rackserve doctor: host.name, units.address, host.firewall",
        reference="vllm#7074",
        source="torch/csrc/distributed/c10d/ProcessGroupGloo.cpp; gloo/transport/tcp/pair.cc",
    ),
    Signature(
        id="log.nccl-no-library",
        pattern=r"NCCL INFO (Failed to open libibverbs\.so\S*)",
        cause="NCCL goes over TCP: it finds no library for InfiniBand",
        fix="sudo apt-get install -y libibverbs1 ibverbs-providers; rackserve doctor: ib.verbs",
        reference="vllm#6732",
        source="nccl/src/misc/ibvsymbols.cc",
    ),
    Signature(
        id="log.nccl-tcp",
        pattern=r"NCCL INFO (NET/IB : No device found|Using network Socket|NET/Socket : Using \S+"
        r"|Channel \S+ : .* via NET/Socket)",
        cause="NCCL goes over TCP (NET/Socket), not over InfiniBand (NET/IB)",
        fix="rackserve doctor: ib.ports, ib.verbs, units.memlock; right where the nodes have no InfiniBand",
        reference="vllm#6610",
        source="nccl/src/transport/net_ib; nccl/src/init.cc",
    ),
    Signature(
        id="log.memlock",
        pattern=r"Call to ibv_(?:reg_mr\w*|create_[cq][qp]) failed"
        r"(?: with error Cannot allocate memory|\s*$)",
        cause="NCCL may not pin the memory that it needs for InfiniBand or RoCE",
        fix="rackserve doctor: units.memlock; then rackserve deploy serve",
        reference="nccl-tests#206",
        source="nccl/src/misc/ibvwrap.cc; NCCL's user guide, troubleshooting: InfiniBand",
    ),
    Signature(
        id="log.step-timeout",
        pattern=r"RayChannelTimeoutError: .*Timed out waiting for object available to read"
        r"|RPC call to \w+ timed out",
        cause="a step took longer than vLLM waits (300 s): a rank hangs or is gone, or the network stalls",
        fix="rackserve logs: who fell silent; rackserve doctor: gpu.xid, ib.ports, net.errors, memory.killed",
        reference="vllm#15102",
        source="vllm/v1/executor/multiproc_executor.py:442; ray/exceptions.py:1071",
    ),
    Signature(
        id="log.memory-free",
        pattern=r"Free memory on device \S+ \(([\d.]+)/([\d.]+) GiB\) on startup is less than desired "
        r"GPU memory utilization \(([\d.]+), ([\d.]+) GiB\)",
        cause="somebody else holds memory of the GPU",
        fix="rackserve doctor: gpu.processes, units.strays; or a smaller gpu-memory-utilization",
        reference="vllm#34643",
        source="vllm/v1/worker/utils.py:761",
    ),
    Signature(
        id="log.memory-cache",
        pattern=r"max seq len \((\d+)\), \(?([\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \(([\d.]+) GiB\)",
        cause="the KV cache does not hold one request of that length",
        fix="--data context=LESS, or more GPUs: rackserve plan MODEL --explain",
        reference="docs/planning.md",
        source="vllm/v1/core/kv_cache_utils.py:1030",
    ),
    Signature(
        id="log.memory-none",
        pattern=r"No available memory for the cache blocks",
        cause="weights and activations leave no memory for a KV cache",
        fix="more GPUs, or a quantized model: rackserve plan MODEL --explain",
        reference="docs/planning.md",
        source="vllm/v1/core/kv_cache_utils.py:1011",
    ),
    Signature(
        id="log.memory-gpu",
        pattern=r"CUDA out of memory\. Tried to allocate [\d.]+ \w+\."
        r"( GPU \d+ has a total capacity of [\d.]+ \w+ of which [\d.]+ \w+ is free)?",
        cause="a GPU ran out of memory",
        fix="a smaller gpu-memory-utilization or max-num-batched-tokens in vllm_args",
        reference="vllm#20860",
        source="torch c10/cuda/CUDACachingAllocator.cpp",
    ),
    Signature(
        id="log.memory-host",
        pattern=r"A process of this unit has been killed by the OOM killer|Failed with result 'oom-kill'"
        r"|Memory on the node .* was [\d.]+GB / [\d.]+GB \([\d.]+\), which exceeds the memory usage "
        r"threshold of [\d.]+",
        cause="the host ran out of memory",
        fix="rackserve doctor: memory.killed, memory.cache; less cpu-offload-gb, fewer max-num-seqs",
        reference="ROLL#234",
        source="systemd src/core; ray doc/source/ray-core/scheduling/ray-oom-prevention.rst",
    ),
    Signature(
        id="log.ready-timeout",
        pattern=r"Timed out waiting for engine core processes to start\..*Waited (\d+)s",
        cause="vLLM gave up before the weights were loaded",
        fix='--data \'vllm_env={"VLLM_ENGINE_READY_TIMEOUT_S": "7200"}\'; rackserve doctor: weights.disk',
        reference="vllm#24469",
        source="vllm/v1/engine/core_client.py:743",
    ),
    Signature(
        id="log.shm",
        pattern=r"Error while creating shared memory segment (/dev/shm/\S+) \(size (\d+)\)"
        r"|/dev/shm has only (\d+) bytes available",
        cause="/dev/shm is too small, or full of what dead processes left",
        fix="rackserve doctor: shm.size, shm.stale",
        reference="nccl#290",
        source="nccl/src/misc/shmutils.cc; ray/_private/services.py:2249",
    ),
    Signature(
        id="log.versions",
        pattern=r"Version mismatch: The cluster was started with:|Python patch version mismatch",
        cause="the nodes have different versions of Ray or Python",
        fix="rackserve deploy provision; rackserve doctor: same.ray, same.python",
        reference="gpustack#1640",
        source="ray/_private/utils.py:1438",
        more=5,
    ),
    Signature(
        id="log.driver",
        pattern=r"Driver/library version mismatch|The NVIDIA driver on your system is too old",
        cause="the driver changed under a running system, or is too old for vLLM's CUDA",
        fix="rackserve doctor: gpu.driver, gpu.cuda",
        reference="ubuntu-packaging-nvidia-driver#3",
        source="NVML; torch/csrc/cuda/Module.cpp",
    ),
    Signature(
        id="log.fabric",
        pattern=r"Error 802: system not yet initialized",
        cause="the NVSwitch fabric is not up",
        fix="sudo systemctl restart nvidia-fabricmanager; rackserve doctor: gpu.fabric",
        reference="pytorch#35710",
        source="cudaErrorSystemNotReady; huggingface_hub#4128",
    ),
    Signature(
        id="log.port",
        pattern=r"\[Errno 98\].*[Aa]ddress already in use",
        cause="a port of the plan is taken",
        fix="rackserve doctor: ports.taken, units.strays",
        reference="vllm#28498",
        source="errno 98 (EADDRINUSE), as Python prints it",
    ),
)

#: What uvicorn says when vLLM serves: what came before it is history.
SERVES = "Application startup complete."


def diagnose(
    journals: Mapping[str, Sequence[str]], heads: Mapping[str, Mapping[str, str]] | None = None
) -> list[Cause]:
    """The known causes in each host's lines, since it last served; those that most hosts have first.

    + heads: {host: {replica: its head}}: only they say that they serve
    """
    found: list[Cause] = []
    led = Counter({name: head for of in (heads or {}).values() for name, head in of.items()}.values())
    for host, lines in journals.items():
        of = (heads or {}).get(host, {}).values()
        # Which of its replicas a head says it of it does not say.
        starts = [start for head in of if led[head] == 1 and (start := _served(journals.get(head, ())))]
        # Of several replicas, what is younger than the first of their starts may be any one's.
        since = min(starts) if starts and len(starts) == len(of) else None
        found += _causes(host, _after(_since_served(lines), since))
    spread = {one.id: sum(other.id == one.id for other in found) for one in found}
    return sorted(found, key=lambda one: -spread[one.id])


def _since_served(lines: Sequence[str]) -> Sequence[str]:
    served = [at for at, line in enumerate(lines) if SERVES in line]
    return lines[served[-1] + 1 :] if served else lines


def _after(lines: Sequence[str], since: datetime | None) -> Sequence[str]:
    """From the first one on that is younger."""
    if since is None:
        return lines
    young = (at for at, line in enumerate(lines) if (when := _time(line)) and when > since)
    return lines[next(young, len(lines)) :]


def _served(lines: Sequence[str]) -> datetime | None:
    """When vLLM last said there that it serves."""
    return next((_time(line) for line in reversed(lines) if SERVES in line), None)


def _time(line: str) -> datetime | None:
    """As `journalctl --output=short-iso` has it; what goes on for more lines has one on the first."""
    with suppress(ValueError):
        return datetime.strptime(line.split(" ", 1)[0], "%Y-%m-%dT%H:%M:%S%z")
    return None


def _causes(host: str, lines: Sequence[str]) -> Iterable[Cause]:
    last: dict[str, tuple[int, str]] = {}
    for at, line in enumerate(lines):
        for one in SIGNATURES:
            if match := re.search(one.pattern, line):
                said = [_said(line, match), *map(_message, lines[at + 1 : at + 1 + one.more])]
                last[one.id] = (last.get(one.id, (0, ""))[0] + 1, " ".join(said))
    for one in SIGNATURES:
        if one.id in last:
            times, evidence = last[one.id]
            yield Cause(host, one.id, one.cause, evidence, times, one.fix, one.reference)


def _message(line: str) -> str:
    """A line of a journal without time, host and program."""
    return " ".join(re.sub(r"^\S+ \S+ \S+\[\d+\]: (\([^)]*\) )*", "", line).split())


def _said(line: str, match: re.Match[str]) -> str:
    """When, and the matching part of a line."""
    when = line.split(" ", 1)[0] if re.match(r"\d{4}-", line) else ""
    return f"{when} {' '.join(match[0].split())}".strip()

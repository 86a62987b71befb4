"""GPUs and their driver: there, the ones promised, and fit for vLLM's CUDA."""

from __future__ import annotations

from models import hardware

from ..check import Host, Unclear, Verdict, check, failed, passed, warned
from ..parse import compiler_says, driver_says, gpus, loaded_driver, properties


def seen_gpus(host: Host) -> list[dict[str, str]]:
    """Those of `nvidia-smi -q`; Unclear when there is none to judge, which gpu.count reports."""
    found = gpus(host.get("nvidia_smi"))
    if not found:
        raise Unclear("nvidia-smi shows no GPU")
    return found


@check(
    "gpu.count",
    "As many GPUs as the inventory promises",
    looks_at="nvidia-smi -q, the PCI bus",
    fix="correct `gpus` of {host} in the inventory, or find the GPU: sudo dmesg | grep -i nvrm",
    reference="vllm#13388",
    gpus_only=True,
)
def count(host: Host) -> Verdict | None:
    said = (host.seen or {}).get("nvidia_smi")
    found, promised = len(gpus(said or "")), host.expected.gpus
    on_bus = (host.seen or {}).get("hardware") or {"gpus": "?"}
    if found >= promised:
        return passed(f"{found} GPUs")
    if said is None:
        return failed(
            f"{promised} promised; there is no nvidia-smi, {on_bus['gpus']} on the bus",
            "rackserve deploy provision installs NVIDIA's driver, rackserve rollout --reboot due loads it",
        )
    first = "" if found else f"; nvidia-smi: {' '.join(said.split())[:120]}"
    return failed(f"{promised} promised, {found} found, {on_bus['gpus']} on the bus{first}")


@check(
    "gpu.model",
    "The GPUs that the inventory names",
    looks_at="nvidia-smi -q: Product Name",
    fix="correct `gpu` of {host} in the inventory",
    reference="gpustack#5509",
    gpus_only=True,
)
def model(host: Host) -> Verdict | None:
    names = sorted({gpu["Product Name"] for gpu in seen_gpus(host)})
    wanted = host.expected.gpu
    if len(names) > 1:
        return failed(f"different ones: {', '.join(names)}")
    if wanted is None:
        return warned(f"{names[0]}; the inventory names none, so no memory is planned")
    try:
        same = hardware.gpu(names[0]) == hardware.gpu(wanted)
    except hardware.UnknownGpu:
        return warned(f"{names[0]} is not in models/hardware.py; the inventory says {wanted}")
    return passed(names[0]) if same else failed(f"{names[0]}; the inventory says {wanted}")


@check(
    "gpu.nouveau",
    "nouveau does not hold the GPUs",
    looks_at="/proc/modules",
    fix="echo blacklist nouveau | sudo tee /etc/modprobe.d/nouveau.conf; sudo update-initramfs -u; reboot",
    reference="negativo17/nvidia-driver#73",
    gpus_only=True,
)
def nouveau(host: Host) -> Verdict | None:
    loaded = any(line.startswith("nouveau ") for line in host.get("modules").splitlines())
    return failed("nouveau is loaded") if loaded else passed("not loaded")


@check(
    "gpu.driver",
    "The driver's library fits its loaded module",
    looks_at="/proc/driver/nvidia/version, nvidia-smi",
    fix="reboot {host}; then: sudo apt-mark hold 'nvidia-*' 'libnvidia-*'",
    reference="ubuntu-packaging-nvidia-driver#3",
    gpus_only=True,
)
def driver(host: Host) -> Verdict | None:
    said, module = host.get("nvidia_smi"), loaded_driver((host.seen or {}).get("driver") or "")
    library = driver_says(said, "Driver Version") or driver_says(said, "NVML library version")
    if "version mismatch" in said or (module and library and not module.startswith(library)):
        return failed(f"module {module or '?'}, library {library or '?'}")
    if not module or not library:
        return failed(f"it does not answer: {' '.join(said.split())[:120]}")
    return passed(module)


@check(
    "gpu.packages",
    "The driver is held: no upgrade behind its back",
    looks_at="dpkg, unattended-upgrades",
    fix="sudo apt-mark hold PACKAGES on {host}",
    reference="homelab#4110",
    gpus_only=True,
)
def packages(host: Host) -> Verdict | None:
    branch = loaded_driver((host.seen or {}).get("driver") or "").partition(".")[0]
    rows = [line.split() for line in host.get("packages").splitlines() if " installed " in line]
    drivers = [row for row in rows if _is_drivers(row[2], row[3], branch)]
    loose = [row[2] for row in drivers if row[0] != "hold"]
    automatic = properties((host.seen or {}).get("services") or "").get("unattended-upgrades", {})
    if loose and automatic.get("ActiveState") == "active":
        return warned(
            f"unattended-upgrades runs and {len(loose)} packages are not held, as {loose[0]}",
            f"sudo apt-mark hold {' '.join(loose)}",
        )
    return passed("held" if drivers and not loose else "nothing upgrades by itself")


def _is_drivers(name: str, version: str, branch: str) -> bool:
    """Not so the container toolkit and others beside it, which have versions of their own; signed modules
    have the kernel's."""
    return name.startswith("linux-") or version.rpartition(":")[2].startswith(f"{branch}.")


@check(
    "gpu.cuda",
    "The driver is new enough for the CUDA that vLLM brings",
    looks_at="nvidia-smi -q: CUDA Version, the lock file",
    fix="set `driver` of {host} to a newer branch, 580 at least: docs/provision.md",
    reference="vllm#28305",
    gpus_only=True,
)
def cuda(host: Host) -> Verdict | None:
    if not host.expected.cuda:
        return None
    has = driver_says(host.get("nvidia_smi"), "CUDA Version")
    if not has:
        raise Unclear("nvidia-smi names no CUDA version")
    wanted, there = host.expected.cuda, tuple(map(int, has.split(".")))
    said = f"the driver does CUDA {has}, vLLM's environment has {wanted}"
    if there[0] < int(wanted.split(".")[0]):
        return failed(said)
    # Within a major version older drivers run newer binaries, but cannot compile newer PTX.
    return warned(said) if there < tuple(map(int, wanted.split(".")[:2])) else passed(said)


@check(
    "gpu.compiler",
    "What compiles kernels as vLLM starts is there",
    looks_at="/usr/local/cuda/bin/nvcc",
    fix="rackserve deploy provision installs it with the driver, where that is not yours: docs/provision.md",
    reference="vllm#49497",
    gpus_only=True,
)
def compiler(host: Host) -> Verdict | None:
    if not host.expected.cuda:
        return None
    has = compiler_says((host.seen or {}).get("nvcc") or "")
    if not has:
        return warned("no nvcc: vLLM goes without FlashInfer and DeepGEMM, or does not start")
    said = f"nvcc of CUDA {has}, vLLM's environment has {host.expected.cuda}"
    same_major = has.split(".")[0] == host.expected.cuda.split(".")[0]
    return passed(said) if same_major else warned(said)


@check(
    "gpu.fabric",
    "The NVSwitch fabric is up, its manager of the driver's version",
    looks_at="nvidia-smi -q: Fabric, nvidia-fabricmanager",
    # Its package's name differs by source, and its version must be the driver's: provision knows both.
    fix="rackserve deploy provision; sudo systemctl enable --now nvidia-fabricmanager on {host}; then "
    "sudo journalctl -u nvidia-fabricmanager",
    reference="pytorch#35710",
    gpus_only=True,
)
def fabric(host: Host) -> Verdict | None:
    found = seen_gpus(host)
    states = {(gpu.get("Fabric/State", "N/A"), gpu.get("Fabric/Status", "N/A")) for gpu in found}
    switches = host.get("hardware")["nvswitches"]
    if states == {("N/A", "N/A")} and not switches:
        return passed("no NVSwitch")
    manager = (host.seen or {}).get("fabricmanager") or ""
    module = loaded_driver((host.seen or {}).get("driver") or "")
    if bad := states - {("Completed", "Success"), ("N/A", "N/A")}:
        return failed("; ".join(f"{state}: {status}" for state, status in sorted(bad)))
    if manager and module and module not in manager:
        return failed(f"{' '.join(manager.split())[:80]}; the driver is {module}")
    runs = properties((host.seen or {}).get("services") or "").get("nvidia-fabricmanager", {})
    if switches and runs.get("ActiveState") != "active":
        return failed(f"{switches} NVSwitches, nvidia-fabricmanager is {runs.get('ActiveState', 'absent')}")
    return passed("Completed: Success" if ("Completed", "Success") in states else "the manager runs")


@check(
    "gpu.mig",
    "No GPU is cut into MIG instances",
    looks_at="nvidia-smi -q: MIG Mode",
    fix="sudo nvidia-smi -mig 0",
    reference="vllm#7211",
    gpus_only=True,
)
def mig(host: Host) -> Verdict | None:
    cut = [gpu["Bus"] for gpu in seen_gpus(host) if gpu.get("MIG Mode/Current") == "Enabled"]
    return failed(f"MIG is on for {', '.join(cut)}") if cut else passed("off")

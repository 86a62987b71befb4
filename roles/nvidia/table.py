"""What NVIDIA's driver is called on each distribution, and where it comes from. Pure data.

Names and addresses are those of NVIDIA's Driver Installation Guide (docs.nvidia.com/datacenter/tesla/
driver-installation-guide: compute-only installation, version locking), of its DCGM documentation
(docs.nvidia.com/datacenter/dcgm), of how NVIDIA itself installs (NVIDIA/gpu-driver-container 06a208c:
ubuntu22.04, ubuntu24.04 and rhel9, install.sh and precompiled/), and of Ubuntu's list of packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: {branch: major version of the CUDA it brings}. Older ones cannot run what vLLM's environment brings.
BRANCHES = {"580": 13, "595": 13}

#: Where none is loaded, and none is asked for.
USUAL = "580"

#: NVIDIA's repositories, one folder for each distribution.
REPOSITORIES = "https://developer.download.nvidia.com/compute/cuda/repos"

#: {what `uname -m` says: the folder of NVIDIA's}.
MACHINES = {"x86_64": "x86_64", "aarch64": "sbsa"}

#: Who signs the repositories for Debian and Ubuntu; its file is fetched from there, so it is compared.
FINGERPRINT = "EB693B3035CD5710E231E123A4B469963BF863CC"
KEYRING = "cuda-archive-keyring.gpg"

#: What signs the one for Rocky.
RPM_KEY = "D42D0685.pub"

#: All that belongs to a driver, as globs of packages' names.
DRIVER = ("nvidia-*", "libnvidia-*", "libcuda1", "libcudadebugger1", "libnvcuvid1", "firmware-nvidia-gsp",
          "xserver-xorg-video-nvidia*")  # fmt: skip

#: Ubuntu's signed modules: their versions are the kernel's.
SIGNED = ("linux-modules-nvidia-*", "linux-objects-nvidia-*", "linux-signatures-nvidia-*")

#: The NVLink of B200 and later is set up by a subnet manager over InfiniBand's management datagrams; only
#: NVIDIA's repository has it. (gpu-driver-container: nvlink5_pkgs_install, _ensure_nvlink5_prerequisites)
SUBNET_MANAGER = ("nvlsm", "infiniband-diags")

PERSISTENCE = "nvidia-persistenced.service"
FABRIC = "nvidia-fabricmanager.service"
MONITORING = ("nvidia-dcgm.service", "nvidia-dcgm-exporter.service")


#: The CUDA of torch in vLLM's environment, as it is in names.
TOOLKIT = "13-0"

#: FlashInfer and DeepGEMM compile as vLLM starts; without nvcc vLLM goes without FlashInfer
#: (vllm/utils/flashinfer.py of 0.33). It is what vLLM's own image installs for that (docker/Dockerfile:
#: runtime JIT compilation), with the headers and libraries that FlashInfer's sources include and link.
COMPILER = ("cuda-nvcc-{toolkit}", "cuda-cuobjdump-{toolkit}", "cuda-cudart-dev-{toolkit}",
            "cuda-nvrtc-dev-{toolkit}", "libcublas-dev-{toolkit}", "libcurand-dev-{toolkit}")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A distribution and a source; in names stand {branch}, {kernel}, {flavour}, {cuda} and {toolkit}.

    + repository: the folder of NVIDIA's, from which monitoring comes in any case
    + driver: what carries the driver's version, by branch; the library first
    + modules: what carries other versions, for the kernel that runs
    + flavour: the same for each kind of kernel that is installed, so that a new one has it, too
    + fabric: what must be of exactly the driver's version where there are NVSwitches
    + compiler: what compiles kernels at start, from NVIDIA's repository, too
    + other: the source that is kept out, as apt's pin names it
    + blocked: what of it is kept out
    + components: of the distribution's archive, from which something comes; not all are there by default
    + holds_kernel: signed modules are for one kernel; a newer one would boot without a driver
    """

    manager: str
    repository: str
    driver: Mapping[str, tuple[str, ...]]
    modules: tuple[str, ...] = ()
    flavour: str = ""
    fabric: str = "nvidia-fabricmanager"
    monitoring: tuple[str, ...] = ("datacenter-gpu-manager-4-cuda{cuda}", "datacenter-gpu-manager-exporter")
    compiler: tuple[str, ...] = COMPILER
    other: str = ""
    blocked: tuple[str, ...] = (*DRIVER, *SIGNED)
    components: tuple[str, ...] = ()
    holds_kernel: bool = False


# Up to 580 NVIDIA's packages for Ubuntu are named after their branch, but for the daemons.
_UBUNTU_NVIDIA = {
    "580": ("libnvidia-compute-{branch}", "libnvidia-cfg1-{branch}", "nvidia-dkms-{branch}-open",
            "nvidia-compute-utils-{branch}", "nvidia-utils-{branch}", "nvidia-persistenced"),
    "595": ("libnvidia-compute", "nvidia-dkms-open", "nvidia-persistenced"),
}  # fmt: skip
# The headless package depends on nvidia-compute-utils, in which Ubuntu has the persistence daemon.
_UBUNTU_OWN = ("nvidia-headless-no-dkms-{branch}-server-open", "nvidia-utils-{branch}-server")


def _ubuntu(repository: str) -> dict[str, Row]:
    return {
        "nvidia": Row(
            "apt",
            repository,
            driver=_UBUNTU_NVIDIA,
            modules=("linux-headers-{kernel}",),
            flavour="linux-headers-{flavour}",
            other="release o=Ubuntu",
        ),
        "ubuntu": Row(
            "apt",
            repository,
            driver=dict.fromkeys(BRANCHES, _UBUNTU_OWN),
            modules=("linux-modules-nvidia-{branch}-server-open-{kernel}",),
            flavour="linux-modules-nvidia-{branch}-server-open-{flavour}",
            fabric="nvidia-fabricmanager-{branch}",
            other="release l=NVIDIA CUDA",
            components=("restricted", "multiverse"),
            holds_kernel=True,
        ),
    }


#: {distribution: {source: row}}
ROWS: Mapping[str, Mapping[str, Row]] = {
    "ubuntu 22.04": _ubuntu("ubuntu2204"),
    "ubuntu 24.04": _ubuntu("ubuntu2404"),
    "debian 12": {
        "nvidia": Row(
            "apt",
            "debian12",
            driver=dict.fromkeys(
                BRANCHES, ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")
            ),
            modules=("linux-headers-{kernel}",),
            flavour="linux-headers-{flavour}",
            other="release o=Debian",
            # NVIDIA's depend on nvidia-support and its like, which are Debian's own and in contrib.
            blocked=("src:nvidia-graphics-drivers*:any",),
            components=("contrib",),
        )
    },
    # Not tried, and not reached: no deploy begins on hosts without apt.
    "rocky 9": {
        "nvidia": Row(
            "dnf",
            "rhel9",
            driver=dict.fromkeys(
                BRANCHES, ("nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced")
            ),
            modules=("kernel-devel-{kernel}", "kernel-headers"),
            compiler=tuple(name.replace("-dev-", "-devel-") for name in COMPILER),
        )
    },
}

"""GPUs and links, one row each: what they hold, and what they can do.

`memory` is what CUDA reports as a device's total_memory, in bytes, which is less than the
name says; the figure of a driver or of ECC may differ by some MiB, and the planner's slack is
larger. Rates are peaks of the vendor's datasheet without sparsity, links in one direction.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from .errors import BadInput

Vendor = Literal["nvidia", "amd", "cpu"]

MiB, GiB = 2**20, 2**30


class UnknownGpu(BadInput):
    """No such GPU in the table."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, as the planner sees it."""

    name: str
    memory: int  # bytes, as CUDA reports them
    bandwidth: float  # bytes/s of its memory
    bf16: float  # FLOP/s, dense
    fp8: float  # FLOP/s, dense; those of bf16 where weights are only stored in 8 bits
    link: float  # bytes/s to its neighbours in the node, in one direction
    capability: int  # CUDA's compute capability, 90 for 9.0; 0: not CUDA
    per_node: int = 8
    nic: str = "NDR"  # the network card that usually comes with each, of LINKS
    vendor: Vendor = "nvidia"
    reduce: float = 8e-6  # seconds of a small all-reduce between neighbours
    share: float = 0.83  # of `bandwidth` that decoding reaches
    decode_share: float = 0.4  # of peak FLOP/s that it reaches
    source: str = ""

    @property
    def mxfp4_padding(self) -> tuple[int, int]:
        """What vLLM pads MXFP4 experts to: width, hidden (fused_moe/oracle/mxfp4.py:837)."""
        if self.capability == 90:
            return (64, 1)
        return (128, 256) if self.vendor == "nvidia" else (1, 1)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network card's line rate, bytes/s in one direction."""

    name: str
    rate: float


#: Small all-reduces: fitted on published runs (docs/performance.md); PCIe's is assumed.
_XGMI, _PCIE = 18e-6, 30e-6

_ROWS = (
    Gpu(name="A100-40", memory=42_405_855_232, bandwidth=1.555e12, bf16=312e12, fp8=312e12, link=300e9,
        capability=80, nic="HDR", source="torch total_memory of A100-SXM4-40GB; NVIDIA A100 datasheet"),
    Gpu(name="A100-80", memory=84_987_740_160, bandwidth=2.039e12, bf16=312e12, fp8=312e12, link=300e9,
        capability=80, nic="HDR", source="deviceQuery of A100-SXM4-80GB; NVIDIA A100 datasheet"),
    Gpu(name="H100", memory=85_028_896_768, bandwidth=3.35e12, bf16=989e12, fp8=1979e12, link=450e9,
        capability=90, source="deviceQuery of H100 80GB HBM3; NVIDIA H100 datasheet"),
    Gpu(name="H100-PCIe", memory=81_008 * MiB, bandwidth=2.0e12, bf16=756e12, fp8=1513e12, link=64e9,
        capability=90, reduce=_PCIE, source="torch total_memory in MiB; NVIDIA H100 datasheet"),
    Gpu(name="H200", memory=150_109_880_320, bandwidth=4.8e12, bf16=989e12, fp8=1979e12, link=450e9,
        capability=90, source="torch total_memory of NVIDIA H200; NVIDIA H200 datasheet"),
    Gpu(name="B200", memory=182_631 * MiB, bandwidth=7.7e12, bf16=2250e12, fp8=4500e12, link=900e9,
        capability=100, source="torch total_memory in MiB; NVIDIA HGX B200 datasheet"),
    Gpu(name="L40S", memory=47_697_362_944, bandwidth=0.864e12, bf16=362e12, fp8=733e12, link=32e9,
        capability=89, nic="200GbE", reduce=_PCIE,
        source="torch total_memory of L40S; NVIDIA L40S datasheet"),
    Gpu(name="MI300X", memory=206_141_652_992, bandwidth=5.3e12, bf16=1307e12, fp8=2615e12, link=448e9,
        capability=0, nic="400GbE", vendor="amd", reduce=_XGMI, share=0.62, decode_share=0.2,
        source="torch total_memory of MI300X; AMD MI300X datasheet"),
    # The lab's stand-in: vLLM's CPU build. Its KV cache is what VLLM_CPU_KVCACHE_SPACE says.
    Gpu(name="cpu", memory=8 * GiB, bandwidth=2e10, bf16=1e11, fp8=1e11, link=1e10, capability=0, nic="10GbE",
        per_node=1, vendor="cpu", reduce=1e-4, source="assumed; no estimate is checked on it"),
)  # fmt: skip

_LINKS = (
    Link(name="HDR", rate=25e9),
    Link(name="NDR", rate=50e9),
    Link(name="XDR", rate=100e9),
    Link(name="100GbE", rate=12.5e9),
    Link(name="200GbE", rate=25e9),
    Link(name="400GbE", rate=50e9),
    Link(name="25GbE", rate=3.125e9),
    Link(name="10GbE", rate=1.25e9),
)

GPUS = {row.name: row for row in _ROWS}
LINKS = {row.name: row for row in _LINKS}

#: Other ways to say it, nvidia-smi's among them; compared in lower case, without the vendor, spaces, dashes
#: and "GB".
_ALSO = {
    "a100sxm440 a100sxm40 a10040sxm4 a10040sxm": "A100-40",
    "a100sxm480 a100sxm80 a10080sxm4 a10080sxm": "A100-80",
    "h10080hbm3 h10080 h100sxm h100sxm5 h100sxm580 h100sxm80 h10080sxm5 h10080sxm": "H100",
    "h10080pcie h100pcie80": "H100-PCIe",
    "h200sxm h200141 h200sxm141 h200141sxm": "H200",
    "b200sxm b200180 b200192": "B200",
    "l40s48": "L40S",
    "mi300x192 mi300xoam": "MI300X",
}
_ROW_OF = {word: row for words, row in _ALSO.items() for word in words.split()}

#: What is said of several.
_UNCLEAR = {"a100": ("A100-40", "A100-80"), "a100sxm": ("A100-40", "A100-80"),
            "a100sxm4": ("A100-40", "A100-80")}  # fmt: skip


@cache
def gpu(name: str) -> Gpu:
    """The row of that name; UnknownGpu names the ones it may mean, or the nearest, otherwise."""
    plain = _plain(name)
    for row in _ROWS:
        if _plain(row.name) == plain:
            return row
    if plain in _ROW_OF:
        return GPUS[_ROW_OF[plain]]
    if plain in _UNCLEAR:
        raise UnknownGpu(f"GPU {name!r} may be {' or '.join(_UNCLEAR[plain])}: say which")
    near = difflib.get_close_matches(name.upper(), GPUS, n=3, cutoff=0.4) or list(GPUS)
    raise UnknownGpu(f"unknown GPU {name!r}; the nearest are: {', '.join(near)}")


def _plain(name: str) -> str:
    words = re.sub(r"^(nvidia|amd instinct|amd)\b", "", str(name).lower().strip())
    return re.sub(r"[\s_-]|(?<=\d)gb?(?![a-z0-9])", "", words)

"""The checks, a file for each thing they look at; importing them fills the registry."""

from . import across, disks, environment, fabric, gpus, health, host, measured, memory, network, units

__all__ = [
    "across", "disks", "environment", "fabric", "gpus", "health", "host", "measured", "memory", "network",
    "units",
]  # fmt: skip

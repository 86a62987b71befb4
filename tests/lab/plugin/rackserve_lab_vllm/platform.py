"""A CPU that Ray counts as a GPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllm import envs
from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class LabPlatform(CpuPlatform):
    """The CPU platform, schedulable by Ray, safe across hosts, quick to start."""

    ray_device_key = "GPU"

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        # The CPU platform insists on "spawn", which pins threads better but makes
        # each process of a server import vLLM anew: some 15 s on a small machine.
        method = envs.VLLM_WORKER_MULTIPROC_METHOD
        super().check_and_update_config(vllm_config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = method

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "rackserve_lab_vllm.communicator.LabCommunicator"

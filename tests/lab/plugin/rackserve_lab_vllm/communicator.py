"""Shared memory within a host, the network between hosts."""

import socket

import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class LabCommunicator(CpuCommunicator):
    """The CPU communicator, for a group whose ranks may be on several hosts."""

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        # vLLM compares names made from a port and the ranks. Two hosts agree on
        # those too, and then wait for a segment that only the other one has.
        hosts: list[str] = [""] * self.world_size
        dist.all_gather_object(hosts, socket.gethostname(), group=self.device_group)
        return len(set(hosts)) == 1

"""The lab: a real multi-node cluster of systemd machines on one Linux host.

Nodes are systemd-nspawn containers over a cached debootstrap base, with a disk,
an address and an sshd of their own. They stand in for bare metal in the demo and
the tests; nothing in roles/ or deploys/ knows about them.
"""

from .cluster import Lab
from .shell import LabError

__all__ = ["Lab", "LabError"]

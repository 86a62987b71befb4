"""Where the lab lives on its host. Everything the lab owns is under these two folders."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

STATE = Path("/var/lib/rackserve-lab")
CACHE = Path("/var/cache/rackserve-lab")

MODELS = CACHE / "models"
WHEELHOUSE = CACHE / "wheelhouse"
PLUGINS = WHEELHOUSE / "plugins.lock"
ENVIRONMENT = CACHE / "environment"
GPU_VLLM = CACHE / "vllm-for-gpus"
TOKENS = STATE / "hub-tokens"

BRIDGE = "rackserve0"
SUBNET = IPv4Network("10.77.44.0/24")
GATEWAY = SUBNET[1]
HUB_PORT = 8099

#: Written on everything in the kernel that is the lab's, so that only that is removed.
MARK = "rackserve-lab"

MAX_NODES = 8
USER = "rack"
KEY = STATE / "ssh/id_ed25519"
KNOWN_HOSTS = STATE / "ssh/known_hosts"

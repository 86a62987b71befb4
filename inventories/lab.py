"""The lab: real nodes on this machine. `rackserve lab up` makes them.

pyinfra inventories/lab.py deploys/serve_llama.py
"""

from tests.lab import Lab as _Lab
from tests.lab.paths import KEY as _KEY
from tests.lab.paths import KNOWN_HOSTS as _KNOWN_HOSTS
from tests.lab.paths import USER as _USER

_nodes = [
    (
        node.name,
        {
            "ssh_hostname": str(node.address),
            "ssh_user": _USER,
            "ssh_key": str(_KEY),
            "ssh_known_hosts_file": str(_KNOWN_HOSTS),
            "gpus": 1,
            "gpu": "cpu",
        },
    )
    for node in _Lab().require_up()
]

head, workers = _nodes[:1], _nodes[1:]

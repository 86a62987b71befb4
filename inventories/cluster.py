"""Your cluster. Edit this file; it is the only one you need to.

    pyinfra inventories/cluster.py deploys/serve_llama.py          # or: rackserve deploy
    pyinfra inventories/cluster.py deploys/serve_llama.py --dry    # what would change

A host is a name you like and what is to be known of it:

    ssh_hostname   where SSH finds it (the name itself unless set)
    address        its IP address on the network between the nodes: InfiniBand's IPoIB or
                   the fastest Ethernet (ssh_hostname unless set, which must then be an IP)
    interface      of that address (found on the node unless set)
    gpus, gpu      how many it has, and which (see GPUS_PER_NODE and GPU)
    uplink         True for who downloads (the first that serves unless some host says so)

A jump host: say it in ~/.ssh/config (ProxyJump), and pyinfra goes that way.

Every setting, with its default: deploys/settings.py. What all hosts share is in
inventories/group_data/: all.py, and cluster.py for this inventory.
"""

GPUS_PER_NODE = 8
GPU = "H100"  # A100-40, A100-80, H100, H100-PCIe, H200, B200, L40S: models/hardware.py

# The control host: it holds the lock and the cluster's secret. One host; it serves too
# unless you give it gpus=0.
head = [
    ("gpu1", {"ssh_hostname": "192.0.2.11", "address": "198.51.100.11", "gpus": GPUS_PER_NODE, "gpu": GPU}),
]

# All other nodes, in the order in which replicas should take them: neighbours in the
# rack, or on the same leaf switch, next to each other.
workers = [
    ("gpu2", {"ssh_hostname": "192.0.2.12", "address": "198.51.100.12", "gpus": GPUS_PER_NODE, "gpu": GPU}),
]

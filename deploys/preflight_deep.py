"""`preflight`, and measured: disks, who reaches whom, the bandwidth between the GPUs of a replica.

What serves is not measured. In front of a first start it refuses, among others, to serve over TCP where the
inventory promises InfiniBand:

pyinfra inventories/cluster.py deploys/preflight_deep.py deploys/serve_llama.py
"""

from pyinfra import host

from deploys.cluster import cluster, fit
from deploys.examination import expected, measure
from roles import doctor

cluster()
fit()
doctor.looked(name="Look at the host", expected=expected(host.name))
measure()
doctor.sound(name="No check fails")

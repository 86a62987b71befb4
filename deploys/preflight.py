"""Every check of `rackserve doctor`, before anything is changed: the run ends where one fails.

pyinfra inventories/cluster.py deploys/preflight.py deploys/serve_llama.py
"""

from pyinfra import host

from deploys.cluster import cluster, fit
from deploys.examination import expected
from roles import doctor

cluster()
fit()
doctor.looked(name="Look at the host", expected=expected(host.name))
doctor.sound(name="No check fails")

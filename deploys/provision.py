"""From bare OS to ready: packages, user, folders, kernel settings, driver, fabric, Python environments."""

from pyinfra import host

from deploys import boot, cards, drivers, fabric
from deploys.cluster import begin, gateways, here, on_control
from roles import base, gateway, nccl, nvidia, ofed, runtime, secret
from roles.barrier import barrier

own = here()

begin()
driver, later = drivers.wanted(), drivers.waiting().get(host.name)
its_cards, its_fabric, its_boot = cards.wanted(), fabric.wanted(), boot.wanted()

rdma = () if its_cards else nccl.packages(its_fabric)  # DOCA-OFED brings its own
base.base(also=(*(gateway.PACKAGES if host.name in gateways() else ()), *rdma))
if own.governor and own.runtime == "cuda" and own.gpus:
    base.clocks(str(own.governor))
if its_boot:
    base.passed_through(its_boot)
if driver:
    nvidia.driver(driver)
if later:
    nvidia.ahead(later)
if its_cards:
    ofed.ofed(its_cards)
if its_fabric:
    nccl.fabric(its_fabric)
runtime.tools(own.wheelhouse)
runtime.environment(own.runtime, own.plugins, own.wheelhouse)
if on_control():
    secret.present(name="Make the cluster's secret")
barrier(name="Every host is provisioned")

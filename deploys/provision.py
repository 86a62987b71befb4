"""From bare OS to ready: packages, user, folders, kernel settings, driver, Python environments."""

from pyinfra import host

from deploys import drivers
from deploys.cluster import begin, gateways, here, on_control
from roles import base, gateway, nvidia, runtime, secret
from roles.barrier import barrier

own = here()

begin()
driver = drivers.wanted()

base.base(also=gateway.PACKAGES if host.name in gateways() else ())
if driver:
    nvidia.driver(driver)
runtime.tools(own.wheelhouse)
runtime.environment(own.runtime, own.plugins, own.wheelhouse)
if on_control():
    secret.present(name="Make the cluster's secret")
barrier(name="Every host is provisioned")

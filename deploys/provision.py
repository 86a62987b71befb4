"""From bare OS to ready: packages, user, folders, kernel settings, Python environments."""

from pyinfra import host

from deploys.cluster import begin, gateways, here, on_control
from roles import base, gateway, runtime, secret
from roles.barrier import barrier

own = here()

begin()

base.base(also=gateway.PACKAGES if host.name in gateways() else ())
runtime.tools(own.wheelhouse)
runtime.environment(own.runtime, own.plugins, own.wheelhouse)
if on_control():
    secret.present(name="Make the cluster's secret")
barrier(name="Every host is provisioned")

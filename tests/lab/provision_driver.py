"""What `provision` and a rollout do about the driver, and no more; a unit stands in for a replica."""

from pyinfra import host
from pyinfra.operations import server

from deploys import drivers, rebooting, releasing
from deploys.cluster import begin
from roles import nvidia
from roles.barrier import barrier
from roles.service import PREFIX

begin()
driver, later = drivers.wanted(), drivers.waiting().get(host.name)
if driver:
    nvidia.driver(driver)
if later:
    nvidia.ahead(later)
barrier(name="Every host is provisioned")
if later:
    server.shell(name="Stop what serves", commands=[f"systemctl stop '{PREFIX}replica-*'"])
rebooting.reboot(releasing.rebooting())

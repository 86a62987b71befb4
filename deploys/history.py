"""Read what changed what is served; changes nothing. `rackserve history` prints it."""

from pyinfra import host

from deploys.cluster import reached
from roles import releases

if host.name == reached().control.name:
    host.data.seen = host.get_fact(releases.History, last=host.data.get("_last", 20))

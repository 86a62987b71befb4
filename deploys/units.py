"""Look at the replicas' units on every host; changes nothing. `rackserve status` prints it."""

from pyinfra import host

from deploys.cluster import reached
from roles import remote, replicas

reached()
with remote.unseen(host):
    host.data.seen = host.get_fact(replicas.Units)

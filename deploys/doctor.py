"""Look at every host; changes nothing. `rackserve doctor` judges what was seen.

With `--data _deep=True` it measures, too: it writes to disks and sends between hosts.
"""

from pyinfra import host

from deploys.examination import expected, measure
from roles import doctor, remote
from roles.base.facts import Essentials

seen = doctor.look(host, expected(host.name))
if seen.seen is None:
    lacks = host.get_fact(Essentials, _sudo=False)
    seen = doctor.Host(name=host.name, expected=seen.expected, lacks="; ".join(lacks or ()) or seen.lacks)
with remote.unseen(host):
    host.data.seen = seen
if host.data.get("_deep"):
    measure(of=host.data.get("_replica") or "")

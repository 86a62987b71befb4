"""Look at every host; changes nothing. `rackserve doctor` judges what was seen."""

from pyinfra import host

from deploys.examination import expected
from roles import doctor, remote
from roles.base.facts import Essentials

seen = doctor.look(host, expected(host.name))
if seen.seen is None:
    lacks = host.get_fact(Essentials, _sudo=False)
    seen = doctor.Host(name=host.name, expected=seen.expected, lacks="; ".join(lacks or ()) or seen.lacks)
with remote.unseen(host):
    host.data.seen = seen

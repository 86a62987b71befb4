"""Look at every host; changes nothing. `rackserve doctor` judges what was seen.

With `--data _deep=True` it measures, too: it writes to disks and sends between hosts. With `--data
_logs=LINES` it reads the units' journals instead. `--data _replica=NAME`: only of this replica.
"""

from pyinfra import host

from deploys.examination import expected, journal, measure
from roles import base, doctor, remote

of = host.data.get("_replica") or ""
if host.data.get("_logs"):
    host.data.seen = journal(host.data.get("_logs"), of)
else:
    seen = doctor.look(host, expected(host.name))
    if seen.seen is None:
        seen = doctor.Host(name=host.name, expected=seen.expected, lacks=base.lacks(host) or seen.lacks)
    with remote.unseen(host):
        host.data.seen = seen
    if host.data.get("_deep"):
        measure(of)

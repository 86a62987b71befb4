"""Every replica that the last run changed runs again what it ran before, replaced as `serve` does.

A rollback that broke off is finished. The inventory is not changed: the next `serve` goes forward again.
"""

from pyinfra import host

from deploys import handover, releasing, replacing, trying
from deploys.cluster import begin, gateways, on_control
from roles import releases
from roles.barrier import barrier

begin()
releases.unchanged(name="What runs is as planned for", installed=releasing.installed())
trying.over()

change = releasing.undone()
entry = releasing.entry("rollback", change)
if on_control() and change:
    releases.begun(name="Say in the history what begins", entry=entry)
barrier(name="The release of before is on its nodes")

handover.hand_over(change)
if change.leaving:
    replacing.retire(change, entry)
if gateways():  # a run that broke off may have left one out
    replacing.let_in(change.serving(0), change.answering)
for place in host.loop(range(len(change.batches))):
    replacing.replace(change, place, entry)
if gateways() and change:
    replacing.let_in(change.serving(len(change.batches)), change.well_after)
if on_control() and change:
    releases.ended(name="Say in the history that it is done", entry=entry)

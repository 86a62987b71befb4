"""Remove old environments: what no inventory, no release that is kept, no unit and no process uses."""

from deploys.cluster import begin, here
from roles import runtime

own = here()

begin()

runtime.pruned(name="Remove old environments", keep=[runtime.path(own.runtime, own.plugins)])

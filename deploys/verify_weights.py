"""Read all that is staged again, on every host, and compare it with what was verified then."""

from deploys.cluster import begin
from roles import runtime, weights

begin()

weights.tool()
weights.verified(name="Verify what is staged", python=f"{runtime.TOOLS}/bin/python")

"""Order across hosts.

pyinfra sorts operations by each host's own sequence; operations of disjoint hosts are
interleaved by depth. Only an operation shared by every host separates what comes before
it from what comes after it.
"""

from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import operation


@operation()
def barrier() -> Iterator[str]:
    """Wait for every host; sends nothing. Give it a name that says what is now true."""
    host.noop("barrier")
    return
    yield

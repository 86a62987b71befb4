"""What `rackserve status` says of a replica."""

import json
import time

import pytest

from roles.replicas import look
from scripts.status import _line

ROW = {"host": "node1", "replica": "replica-0", "part": "gang", "active": "active", "sub": "running",
       "restarts": 0, "since": "2026-11-28 01:59:00 UTC"}  # fmt: skip
UP = {"state": "up", "why": "", "next": None, "falls": 0, "recent": []}
FALL = "node2: rackserve-replica-0-ray ended (signal 9)"


def clock(hour, minute, second):
    """Today's time of that hour in UTC, or yesterday's where that is in the future."""
    now = time.time()
    moment = now - now % 86400 + hour * 3600 + minute * 60 + second
    return moment if moment < now else moment - 86400


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (UP, "up since 02:10:03"),
        ({**UP, "falls": 1, "recent": [{"when": clock(2, 9, 10), "why": FALL}]},
         f"up since 02:10:03; 1 fall: {FALL} at 02:09:10"),
        ({**UP, "state": "waiting", "why": "nothing is heard of node2", "falls": 4,
          "recent": [{"when": 0.0, "why": "x"}, {"when": 86399.0, "why": FALL}]},
         f"waiting since 02:10:03 (nothing is heard of node2); 4 falls: {FALL} at 1970-01-01 23:59:59"),
        ({**UP, "state": "waiting", "why": "for the next try", "next": clock(2, 10, 23)},
         "waiting since 02:10:03 (for the next try), next try 02:10:23"),
    ],
)  # fmt: skip
def test_a_gang_says_how_its_replica_is_and_what_took_it_down(told, said):
    line = _line({**ROW, "gang": {**told, "since": clock(2, 10, 3)}})
    assert line.startswith("node1      replica-0  gang    active (running)")
    assert line.endswith(f"  {said}")


def test_a_gang_on_another_node_than_the_head_says_nothing_more():
    assert _line(ROW).endswith("since 2026-11-28 01:59:00 UTC")


def test_the_state_is_read_where_the_head_wrote_it(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(UP))
    assert look.gang(str(tmp_path)) == {"gang": UP}
    assert look.gang(str(tmp_path / "elsewhere")) == {}

"""Lines for people while weights come."""

from threading import Thread

import pytest
import sources
from progress import Progress, done, duration

GB = 10**9


class Watched(Progress):
    """Progress on a clock of its own, which begins at a full minute."""

    def __init__(self):
        self.now, self.lines = 1200.0, []
        super().__init__(lambda: self.now, self.lines.append)

    def at(self, seconds, have, waiting=""):
        """What is said when `have` of 100 GB are there after so many seconds."""
        self.now, before = 1200.0 + seconds, len(self.lines)
        self(have, 100 * GB, waiting)
        return self.lines[before:]


def test_rate_and_remaining_time_are_of_what_came_in_this_run():
    seen = Watched()
    seen.at(0, 40 * GB)
    assert seen.at(10, 50 * GB) == [" 50 %  50.00 of 100.00 GB  1,000 MB/s  50 s left"]


def test_lines_are_at_the_same_time_everywhere_and_fewer_after_a_minute():
    seen = Watched()
    said = [second for second in range(300) if seen.at(second + 0.5, second * GB / 4)]
    assert said == [*range(5, 60, 5), *range(60, 300, 60)]


def test_that_nothing_comes_is_said_with_the_reason():
    seen = Watched()
    seen.at(0, 0)
    assert seen.at(5, GB) and "nothing" not in seen.at(20, GB)[0]
    assert seen.at(45, GB, "node1: it hung up") == [
        "  1 %  1.00 of 100.00 GB  nothing came for 40 s: node1: it hung up"
    ]
    assert "left" in seen.at(50, 2 * GB)[0]


def test_before_anything_came_no_rate_is_guessed():
    seen = Watched()
    seen.at(0, 0)
    assert seen.at(5, 0) == ["  0 %  0.00 of 100.00 GB  0 MB/s"]


def test_who_has_it_all_says_so():
    assert Watched().at(5, 100 * GB) == ["100 %  100.00 of 100.00 GB  is here, and goes to others"]


def test_the_last_line_is_a_row():
    assert done(706 * GB, 561.3, "12 % first-hand") == (
        "whole    706.00 GB     561.3 s    1,258 MB/s  12 % first-hand"
    )


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_what_is_put_in_its_place_while_it_is_looked_at_does_no_harm(tmp_path):
    rest, place = tmp_path / "rest", tmp_path / "place"
    rest.write_text("all")

    def move():
        for _ in range(1000):
            rest.rename(place)
            place.rename(rest)

    moving, sizes = Thread(target=move), set()
    moving.start()
    while moving.is_alive():
        sizes.add(sources._size(rest))
    assert sizes <= {0, 3}

"""The lock's script, run as the node runs it, on a folder of its own."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from roles.lock import describe, holder_of

SCRIPT = Path(__file__).parents[1] / "roles/lock/lock.py"

#: Runs the script with its folder elsewhere than /run.
MAIN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
lock.FOLDER, lock.LOCK = sys.argv[2], sys.argv[2] + "/lock"
sys.exit(lock.main(*sys.argv[3:]))
"""


class Locker:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, action, run="a", ttl=100, gone="", pid=1):
        """(whether it was done, the holder that it printed or for how long there was none)"""
        words = [action, run, str(ttl)]
        if action != "release":
            words += [json.dumps({"who": f"{run}@laptop", "pid": pid}), gone]
        command = [sys.executable, "-I", "-S", "-c", MAIN, SCRIPT, self.folder, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.stderr == "", done.stderr
        said = done.stdout.rstrip("\n")
        return done.returncode == 0, float(said) if action == "take" and not done.returncode else holder_of(
            said
        )

    @property
    def holder(self):
        file = self.folder / "lock"
        return holder_of(file.read_text()) if file.exists() else None

    @property
    def lapses(self):
        """Seconds since the epoch."""
        return float((self.folder / "lock").read_text().split("\n")[1])


@pytest.fixture
def lock(tmp_path):
    return Locker(tmp_path / "run")


def test_a_free_lock_is_taken_and_says_who_since_when_and_until_when(lock):
    before = time.time()
    assert lock("take", "a", ttl=100, pid=7) == (True, 0)
    holder = lock.holder
    assert (holder["id"], holder["who"], holder["pid"]) == ("a", "a@laptop", 7)
    assert before + 100 <= lock.lapses <= time.time() + 100
    assert set(holder) == {"id", "who", "pid", "since"}
    assert describe(holder) == f"a@laptop (pid 7) since {holder['since']}"


def test_who_takes_the_lock_learns_for_how_long_nobody_held_it(lock):
    assert lock("take", "a", ttl=0.1) == (True, 0)  # who knows?
    time.sleep(0.2)
    assert lock("take", "b") == (True, 0)  # it lapsed: its holder may be at work still
    lock("release", "b")
    time.sleep(0.2)
    assert not lock("renew", "c")[0]
    assert 0.2 <= lock("take", "c")[1] < 5
    assert lock("take", "d", gone="c") == (True, 0)


def test_a_taken_lock_is_refused_and_prints_its_holder(lock):
    lock("take", "a")
    took, out = lock("take", "b")
    assert not took and out == lock.holder
    assert lock.holder["id"] == "a"


def test_taking_ones_own_lock_again_is_no_refusal(lock):
    lock("take", "a", ttl=1)
    assert lock("take", "a", ttl=100)[0]
    assert lock.lapses > time.time() + 50


def test_a_lock_lapses_without_renewal(lock):
    lock("take", "a", ttl=0.05)
    time.sleep(0.1)
    assert lock("take", "b")[0]
    assert lock.holder["id"] == "b"


def test_renewal_moves_the_end_and_nothing_else(lock):
    lock("take", "a", ttl=10)
    before, lapsed = lock.holder, lock.lapses
    assert lock("renew", "a", ttl=1000)[0]
    assert lock.lapses > lapsed + 900
    assert lock.holder == before


def test_a_lock_that_was_taken_away_is_not_renewed(lock):
    lock("take", "a", ttl=0.05)
    time.sleep(0.1)
    lock("take", "b")
    assert not lock("renew", "a")[0]
    assert lock.holder["id"] == "b"


@pytest.mark.parametrize("action", ["renew", "release"])
def test_a_lock_that_nobody_holds_is_neither_renewed_nor_released(lock, action):
    lock("take", "b")
    lock("release", "b")
    assert not lock(action, "a")[0]
    assert lock.holder is None


def test_a_lock_that_was_lost_in_a_reboot_is_there_again_unless_another_run_was_first(lock):
    lock("take", "a", pid=7)
    shutil.rmtree(lock.folder)  # /run is empty then
    assert lock("renew", "a", pid=7)[0] and (lock.holder["id"], lock.holder["pid"]) == ("a", 7)
    shutil.rmtree(lock.folder)
    lock("take", "b")
    assert not lock("renew", "a")[0] and lock.holder["id"] == "b"


def test_only_the_holder_releases(lock):
    lock("take", "a")
    assert not lock("release", "b")[0]
    assert lock.holder["id"] == "a"
    assert lock("release", "a")[0]
    assert lock.holder is None
    assert lock("take", "b")[0]


def test_the_lock_of_a_process_that_is_gone_may_be_taken(lock):
    lock("take", "a", pid=41)
    assert not lock("take", "b", gone="c")[0]
    assert lock("take", "b", gone="a")[0]
    assert lock.holder["id"] == "b"


def test_a_lock_that_was_torn_by_a_crash_is_free(lock):
    lock("take", "a")
    (lock.folder / "lock").write_text("a\n17")
    assert lock("take", "b")[0]


def test_of_twenty_at_once_exactly_one_wins(lock):
    names = [f"run{number}" for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(lambda name: lock("take", name), names))
    winners = [name for name, (took, _) in zip(names, outcomes, strict=True) if took]
    assert len(winners) == 1
    assert lock.holder["id"] == winners[0]
    assert all(out["id"] == winners[0] for took, out in outcomes if not took)

"""The fan-out of a snapshot: real sockets on the loopback, processes where one is killed."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import giving
import pytest
import swarm
import wire
from dealing import BATCH, DEALT, IDLE, RELAY, Dealing
from pieces import Manifest, SwarmError, make
from store import Store

from tests.lab.hub_testing import MIB, git_sha1, sha256

SECRET = b"of this run"
PIECE = MIB // 4
SLOW = 0.02  # seconds a slowed node takes for a piece

#: A node as stage.py would run it, in a process of its own.
PROCESS = """
import json, sys, giving, swarm
swarm.QUIET, swarm.PULSE, giving.PULSE, swarm.RETRY = 0.3, 0.2, 0.2, 0.1
folder, files, me, nodes, seeds = json.loads(sys.stdin.readline())
manifest = swarm.Manifest(files, "commit")
stats = swarm.run(folder, manifest, me, nodes, seeds, b"of this run", grace=10,
                  on_proven=lambda: print("proven", flush=True))
print(json.dumps(stats.__dict__))
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(swarm, "QUIET", 0.3)
    monkeypatch.setattr(swarm, "PULSE", 0.2)
    monkeypatch.setattr(giving, "PULSE", 0.2)
    monkeypatch.setattr(swarm, "RETRY", 0.1)


@pytest.fixture
def unhurried(monkeypatch):
    """On a busy machine a moment of silence is no loss: nothing is asked for twice."""
    monkeypatch.setattr(swarm, "QUIET", 20)


@pytest.fixture(autouse=True)
def nothing_left():
    threads, files = set(threading.enumerate()), os.listdir("/proc/self/fd")
    yield
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) <= len(files)


def entry(folder, name):
    return name, (folder / name).stat().st_size, sha256(folder / name)


def snapshot(folder, sizes):
    """Write files of random bytes; returns them as the hub would list them."""
    for number, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random.Random(number).randbytes(size))
    return [entry(folder, name) for name in sizes]


def addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    names = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    for sock in sockets:
        sock.close()
    return names


class Slow(swarm.Node):
    def send(self, sock, what):
        time.sleep(SLOW)
        super().send(sock, what)


class Lying(swarm.Node):
    """Sends zeros."""

    def send(self, sock, what):
        if what >= IDLE:
            return super().send(sock, what)
        index = what & ~RELAY
        sock.sendall(index.to_bytes(4, "big") + bytes(self.manifest.length(index)))


class Swarm:
    """A seed's folder, and as many nodes as a test starts."""

    def __init__(self, base, sizes=None, nodes=3, seeds=1, grace=10):
        self.base, self.source, self.grace = base, base / "source", grace
        self.files = snapshot(self.source, sizes or {"a.bin": 6 * MIB, "b/c.bin": 5 * MIB + 17, "d.json": 99})
        self.bytes = sum(size for _, size, _ in self.files)
        self.names = addresses(nodes + seeds)
        self.seeds = self.names[:seeds]
        self.pool = ThreadPoolExecutor(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()

    def folder(self, number):
        folder = self.source if number < len(self.seeds) else self.base / f"node{number}"
        folder.mkdir(exist_ok=True)
        return folder

    def start(self, number, kind=swarm.Node, manifest=None, files=None, commit="commit", secret=SECRET,
              on_progress=lambda *_: None, on_proven=lambda: None, patience=20,
              grace=None):  # fmt: skip
        """Number 0 and on are seeds. The future's result is the node's Stats."""
        if manifest is None:
            given = files or self.files
            vouched = number < len(self.seeds)
            manifest = make(self.source, given, commit) if vouched else Manifest(given, commit)
        node = kind(self.folder(number), manifest, self.names[number], self.names, self.seeds, secret)

        def run():
            try:
                return node.run(on_progress, on_proven, patience, grace or self.grace)
            finally:
                node.stop()

        return self.pool.submit(run)

    def start_all(self, *, but=()):
        return [self.start(number) for number in range(len(self.names)) if number not in but]

    @contextmanager
    def process(self, number):
        child = subprocess.Popen(
            [sys.executable, "-c", PROCESS], cwd=os.path.dirname(swarm.__file__),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        given = str(self.folder(number)), self.files, self.names[number], self.names, self.seeds
        child.stdin.write(json.dumps(given) + "\n")
        child.stdin.flush()
        with child:
            try:
                yield child
            finally:
                child.kill()

    def written(self, number):
        """Bytes that a node has on its disk."""
        files = [self.folder(number) / name for name, _, _ in self.files]
        return sum(file.stat().st_blocks * 512 for file in files if file.exists())

    def wait_for_bytes(self, number, wanted):
        deadline = time.monotonic() + 20
        while self.written(number) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def right(self, *numbers):
        return all(entry(self.folder(number), file[0]) == file for number in numbers for file in self.files)


def test_everyone_gets_everything_and_the_seed_sends_it_once(tmp_path, unhurried):
    with Swarm(tmp_path, nodes=4) as these:
        seed, *others = [future.result() for future in these.start_all()]
    assert these.right(1, 2, 3, 4)
    assert seed.sent == these.bytes
    assert sum(node.from_seeds for node in others) == these.bytes
    assert all(node.from_seeds + node.from_nodes == these.bytes for node in others)
    assert all((node.wasted, node.dropped) == (0, {}) for node in others)


def test_the_seed_may_start_last(tmp_path, unhurried):
    with Swarm(tmp_path) as these:
        others = these.start_all(but=[0])
        time.sleep(1)
        seed = these.start(0).result()
        assert all(node.result() for node in others)
    assert these.right(1, 2, 3) and seed.sent == these.bytes


def test_two_seeds_share_the_work(tmp_path, unhurried):
    with Swarm(tmp_path, seeds=2) as these:
        stats = [future.result() for future in these.start_all()]
    assert these.right(2, 3, 4)
    assert abs(stats[0].sent - stats[1].sent) <= PIECE + 99
    assert stats[0].sent + stats[1].sent == these.bytes


def test_two_seeds_of_which_one_never_comes(tmp_path):
    with Swarm(tmp_path, seeds=2, grace=2) as these:
        [future.result() for future in these.start_all(but=[1])]
    assert these.right(2, 3, 4)


def test_seeds_that_have_a_part_each_complete_each_other(tmp_path, unhurried):
    with Swarm(tmp_path, nodes=4) as these:
        these.seeds = these.names[:2]
        halves = ["a.bin", "d.json"], ["b/c.bin"]
        for number, names in enumerate(halves):
            for name in names:
                (tmp_path / f"part{number}" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(these.source / name, tmp_path / f"part{number}" / name)
        these.folder = lambda number: tmp_path / f"part{number}"
        [(tmp_path / f"part{number}").mkdir(exist_ok=True) for number in range(5)]
        manifests = [make(these.folder(n), these.files, "commit", names) for n, names in enumerate(halves)]
        futures = [these.start(n, manifest=manifests[n] if n < 2 else None) for n in range(5)]
        stats = [future.result() for future in futures]
        assert these.right(0, 1, 2, 3, 4)
    assert sum(node.wasted for node in stats) == 0


def test_one_that_joins_late_gets_everything(tmp_path):
    with Swarm(tmp_path) as these:
        early = [these.start(0, kind=Slow), these.start(1), these.start(2)]
        these.wait_for_bytes(1, these.bytes // 2)
        late = these.start(3)
        seed = [future.result() for future in [*early, late]][0]
    assert these.right(1, 2, 3)
    assert seed.sent <= these.bytes + 2 * BATCH * PIECE


def test_one_that_is_killed_hurts_nobody(tmp_path):
    with Swarm(tmp_path, grace=2) as these, these.process(3) as child:
        running = [these.start(0, kind=Slow), these.start(1), these.start(2)]
        these.wait_for_bytes(3, these.bytes // 4)
        child.send_signal(signal.SIGKILL)
        started = time.monotonic()
        for future in running:
            future.result()
    assert these.right(1, 2)
    assert time.monotonic() - started < 10


def test_one_that_was_killed_resumes_where_it_was(tmp_path):
    with Swarm(tmp_path, {"a.bin": 20 * MIB}) as these:
        running = [these.start(number, kind=Slow) for number in range(3)]
        with these.process(3) as child:
            these.wait_for_bytes(3, these.bytes // 2)
            child.send_signal(signal.SIGKILL)
        kept = these.written(3)
        with these.process(3) as child:
            out, _ = child.communicate()
        for future in running:
            future.result()
    stats = json.loads(out.splitlines()[-1])
    assert these.right(1, 2, 3)
    assert stats["from_seeds"] + stats["from_nodes"] + stats["wasted"] <= these.bytes - kept + 4 * PIECE


def test_what_is_on_the_disk_is_not_trusted(tmp_path):
    with Swarm(tmp_path) as these:
        shutil.copytree(these.source, these.folder(1), dirs_exist_ok=True)
        with (these.folder(1) / "a.bin").open("r+b") as file:
            file.seek(3 * PIECE + 5)
            file.write(b"damage")
        stats = [future.result() for future in these.start_all()]
    assert these.right(1, 2, 3)
    assert stats[1].from_seeds + stats[1].from_nodes == PIECE


@pytest.mark.parametrize("speak", [b"", b"GET / HTTP/1.1\r\n\r\n"], ids=["silent", "babbling"])
def test_one_that_hangs_hurts_nobody(tmp_path, speak):
    with Swarm(tmp_path, grace=2) as these, socket.create_server(wire.address(these.names[3])) as hung:
        connections, hung_up = [], threading.Event()

        def accept():
            while not hung_up.is_set():
                connections.append(hung.accept()[0])
                connections[-1].sendall(speak)

        thread = threading.Thread(target=accept)
        thread.start()
        started = time.monotonic()
        for future in these.start_all(but=[3]):
            future.result()
        hung_up.set()
        socket.create_connection(wire.address(these.names[3])).close()
        thread.join()
        for connection in connections:
            connection.close()
    assert these.right(1, 2)
    assert time.monotonic() - started < 10


def test_one_that_stops_in_the_middle_hurts_nobody(tmp_path):
    with Swarm(tmp_path, grace=2) as these, these.process(3) as child:
        running = [these.start(0, kind=Slow), these.start(1), these.start(2)]
        these.wait_for_bytes(3, these.bytes // 4)
        child.send_signal(signal.SIGSTOP)
        for future in running:
            future.result()
    assert these.right(1, 2)


def test_one_that_lies_is_named_and_dropped_and_its_pieces_come_from_others(tmp_path, caplog):
    with Swarm(tmp_path, {"a.bin": 8 * MIB}) as these:
        running = [these.start(number, kind=Lying if number == 3 else Slow) for number in range(4)]
        stats = [future.result() for future in running]
    assert these.right(1, 2)
    assert list(stats[1].dropped) == list(stats[2].dropped) == [these.names[3]]
    assert f"{these.names[3]} sent wrong bytes" in caplog.text


def test_a_seed_that_lies_about_pieces_is_found_by_the_hubs_checksum(tmp_path):
    with Swarm(tmp_path, nodes=2, grace=3) as these:
        liar = make(these.source, these.files, "commit")
        with (these.source / "b/c.bin").open("r+b") as file:
            file.write(b"damage")
        index = liar.spans[1].start
        damaged = (these.source / "b/c.bin").read_bytes()[:PIECE]
        liar.hashes[index] = hashlib.sha256(damaged).digest()
        proven = []
        seed = these.start(0, manifest=liar)
        for future in [these.start(number, on_proven=lambda: proven.append(1)) for number in (1, 2)]:
            with pytest.raises(SwarmError, match="^b/c.bin: its checksum is not the hub's$"):
                future.result()
        seed.result()
    assert not proven


def test_a_seed_whose_files_are_wrong_is_refused_before_it_deals(tmp_path):
    files = snapshot(tmp_path, {"a.bin": MIB, "b.bin": MIB})
    (tmp_path / "b.bin").write_bytes(bytes(MIB))
    with pytest.raises(SwarmError, match="^b.bin: its checksum is not the hub's$"):
        make(tmp_path, files, "commit")
    (tmp_path / "b.bin").write_bytes(b"")
    with pytest.raises(SwarmError, match="^b.bin has another size than the hub's$"):
        make(tmp_path, files, "commit")


@pytest.mark.parametrize("other", [{"secret": b"another"}, {"commit": "another"}], ids=str)
def test_another_secret_or_commit_learns_nothing(tmp_path, other):
    with Swarm(tmp_path, nodes=1) as these:
        seed = these.start(0, grace=1.5)
        with pytest.raises(SwarmError, match="nothing came for 1 s") as refused:
            these.start(1, patience=1, **other).result()
        assert seed.result().sent == 0
    assert these.written(1) == 0
    assert ("another snapshot" in str(refused.value)) == ("commit" in other)


def test_two_runs_at_one_address_are_refused(tmp_path):
    with Swarm(tmp_path, nodes=1, grace=3) as these:
        seed = these.start(0)
        time.sleep(0.5)
        with pytest.raises(SwarmError, match=f"^{these.names[0]}: Address already in use"):
            these.start(0).result()
        seed.result()


def test_garbage_at_the_port_does_no_harm(tmp_path):
    with Swarm(tmp_path, nodes=1) as these:
        seed = these.start(0)
        time.sleep(0.3)
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(100), bytes(MIB)):
            with socket.create_connection(wire.address(these.names[0])) as sock:
                try:
                    sock.sendall(garbage)
                    sock.shutdown(socket.SHUT_WR)
                    told = b"".join(iter(lambda: sock.recv(100), b""))  # noqa: B023
                except OSError:
                    told = b""
            assert len(told) <= 32  # its challenge
        these.start(1).result()
        seed.result()
    assert these.right(1)


def test_a_run_that_nobody_seeds_ends(tmp_path):
    with Swarm(tmp_path, nodes=1) as these, pytest.raises(SwarmError) as refused:
        these.start(1, patience=1).result()
    assert f"nothing came for 1 s ({these.names[0]}: [Errno 111] Connection refused)" in str(refused.value)


def test_what_progress_raises_ends_the_run(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with Swarm(tmp_path, nodes=1) as these, pytest.raises(KeyboardInterrupt):
        these.start(1, on_progress=stop).result()


def test_progress_counts_the_bytes(tmp_path):
    seen = []
    with Swarm(tmp_path, nodes=1) as these:
        these.start(0)
        these.start(1, on_progress=lambda *said: seen.append(said[:2])).result()
    assert seen == sorted(seen) and seen[-1] == (these.bytes, these.bytes)


def test_the_folder_may_be_renamed_once_it_is_proven(tmp_path):
    with Swarm(tmp_path) as these:
        final = tmp_path / "final"
        rename = lambda: these.folder(1).rename(final)  # noqa: E731
        running = [these.start(0, kind=Slow), these.start(1, on_proven=rename)]
        these.wait_for_bytes(1, these.bytes - MIB)
        running += [these.start(2), these.start(3)]
        for future in running:
            future.result()
        assert these.right(2, 3)
        assert all(entry(final, file[0]) == file for file in these.files)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small tmpfs; `make test` is root")
def test_a_full_disk_is_an_oserror_and_the_next_run_goes_on(tmp_path):
    with Swarm(tmp_path, {"a.bin": 8 * MIB}, nodes=2) as these:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", these.folder(1)], check=True)
        try:
            running = [these.start(number) for number in range(3)]
            with pytest.raises(OSError) as raised:
                running[1].result()
            assert raised.value.errno == errno.ENOSPC
            subprocess.run(["mount", "-o", "remount,size=32m", these.folder(1)], check=True)
            again = these.start(1).result()
            for number in (0, 2):
                running[number].result()
            assert these.right(1, 2)
            assert again.from_seeds + again.from_nodes <= 5 * MIB
        finally:
            subprocess.run(["umount", these.folder(1)], check=True)


def test_five_thousand_small_files_are_quick(tmp_path, unhurried):
    sizes = {f"folder {number % 50}/{number}.txt": number % 700 for number in range(5000)}
    with Swarm(tmp_path, sizes, nodes=2) as these:
        started = time.monotonic()
        stats = [future.result() for future in these.start_all()]
        assert time.monotonic() - started < 15
    assert these.right(1, 2)
    assert stats[0].sent == these.bytes


def test_names_of_any_kind_and_files_without_bytes(tmp_path):
    sizes = {"empty": 0, "mit Leerzeichen/größe 模型.bin": 3 * MIB, "x'\"$(y)\n.json": 7, "z/empty too": 0}
    with Swarm(tmp_path, sizes) as these:
        for future in these.start_all():
            future.result()
    assert these.right(1, 2, 3)


def test_a_snapshot_without_any_bytes(tmp_path):
    with Swarm(tmp_path, {"empty": 0}) as these:
        for future in these.start_all():
            future.result()
    assert these.right(1, 2, 3)


def test_gits_checksums_are_checked_too(tmp_path):
    content = b"{}\n" * 50
    with Swarm(tmp_path, {"a.bin": MIB}, nodes=1) as these:
        (these.source / "config.json").write_bytes(content)
        these.files.append(("config.json", len(content), git_sha1(content)))
        for future in these.start_all():
            future.result()
    assert (these.folder(1) / "config.json").read_bytes() == content
    wrong = [*these.files[:-1], ("config.json", len(content), git_sha1(b"other"))]
    with pytest.raises(SwarmError, match="^config.json: its checksum"):
        make(these.source, wrong, "commit")


def test_holes_of_a_big_file_are_not_read(tmp_path):
    (tmp_path / "a.bin").touch()
    os.truncate(tmp_path / "a.bin", 2**40)
    manifest = Manifest([("a.bin", 2**40, "0" * 64)], "commit")
    started = time.monotonic()
    node = swarm.Node(tmp_path, manifest, "127.0.0.1:1", [], [], SECRET)
    node.store.prepare()
    node.stop()
    assert node.store.unread == 0
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "a//b", "", ".", "a/", "a\0b"])
def test_paths_that_leave_the_folder_are_refused(path):
    with pytest.raises(SwarmError, match="no path inside a folder"):
        Manifest([(path, 1, "0" * 64)], "commit")


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    with Swarm(tmp_path, {"a.bin": MIB}, nodes=1) as these:
        (these.folder(1) / "a.bin").symlink_to(tmp_path / "precious")
        with pytest.raises(OSError):
            these.start(1).result()
    assert (tmp_path / "precious").read_text() == "precious"


def sizes_of(*sizes):
    return Manifest([(str(number), size, "0" * 64) for number, size in enumerate(sizes)], "commit")


@pytest.mark.parametrize(("size", "piece"), [(1, PIECE), (2**30, PIECE * 2), (700 * 10**9, 16 * MIB)])
def test_pieces_are_about_4000_and_not_too_small_or_big(size, piece):
    assert sizes_of(size).piece_bytes == piece


def test_small_files_share_pieces_and_big_ones_start_their_own():
    manifest = sizes_of(10, 3 * PIECE + 1, 20, PIECE - 25, 0, 40)
    assert manifest.pieces == [[0, 2], [1], [1], [1], [1], [3], [5]]
    assert sum(map(manifest.length, range(len(manifest.pieces)))) == manifest.bytes
    for number, file in enumerate(manifest.files):
        parts = [manifest.part(index, number) for index in manifest.spans[number]]
        assert sum(size for _, size in parts) == file.size
        assert [offset for offset, _ in parts] == [n * PIECE for n in range(len(parts))]


@pytest.mark.parametrize(
    ("lags", "behind"),
    [([9], False), ([0] * 7, False), ([0] * 6 + [9], False), ([0] * 5 + [9] * 2, True), ([3] * 7, True)],
    ids=str,
)
def test_a_node_is_behind_when_more_than_a_few_wait_for_it(lags, behind):
    dealing = Dealing(0)
    dealing.first_hand = list(range(10))
    for lag in lags:
        line = dealing.open(lacks=1023)
        line.relayed, line.at = 10 - lag, 5.0
    assert dealing.behind(now=5.5) == behind
    assert not dealing.behind(now=6.5)  # nobody takes anything: it is not our link


def test_a_seed_deals_each_piece_once_and_no_more_than_is_taken():
    dealing = Dealing(0b11111)
    one, other = dealing.open(0b11111), dealing.open(0b11111)
    assert [one.next(0) for _ in range(5)] == [RELAY | 0, RELAY | 1, RELAY | 2, RELAY | 3, IDLE]
    assert [other.next(0) for _ in range(3)] == [RELAY | 4, DEALT, IDLE]
    assert one.next(0) == DEALT


def test_a_piece_is_written_past_what_another_snapshot_has_too(tmp_path):
    """Small files share a piece: one that came before is another snapshot's as well, and may be served."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old/b").write_bytes(b"b" * 10)
    os.link(tmp_path / "old/b", tmp_path / "new/b")
    before = (tmp_path / "old/b").stat()
    manifest = Manifest(
        [(name, 10, sha) for name, sha in (("a", "0" * 64), ("b", "1" * 64), ("c", "2" * 64))], "x"
    )
    store = Store(tmp_path / "new", manifest, threading.Condition())
    try:
        store.prepare()
        store.write(0, memoryview(b"A" * 10 + b"B" * 10 + b"C" * 10))
    finally:
        store.close()
    assert [(tmp_path / "new" / name).read_bytes() for name in "abc"] == [b"A" * 10, b"b" * 10, b"C" * 10]
    assert (tmp_path / "old/b").stat().st_mtime_ns == before.st_mtime_ns

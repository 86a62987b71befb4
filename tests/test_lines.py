"""What a gang's nodes say to each other: in time, in lines, and to nobody else."""

import socket
import threading
import time

import lines
import pytest

HOSTS = ["node1", "node2"]


@pytest.fixture
def wires():
    """Two ends of a connection."""
    ours, theirs = (lines.Wire(sock, 0.4) for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def greeting(wire, token, host):
    def greet():
        try:
            lines.greet(wire, token, host)
        except OSError:
            wire.close()

    threading.Thread(target=greet, daemon=True).start()


def test_both_ends_that_know_the_token_are_let_in(wires):
    ours, theirs = wires
    greeting(theirs, "token", "node2")
    assert lines.greeted(ours, "token", HOSTS) == "node2"


@pytest.mark.parametrize(
    ("token", "host", "said"),
    [
        ("other", "node2", "node2 does not know the token"),
        ("token", "node3", "node3 is not one of node1, node2"),
    ],
)
def test_others_are_not(wires, token, host, said):
    ours, theirs = wires
    greeting(theirs, token, host)
    with pytest.raises(PermissionError, match=said):
        lines.greeted(ours, "token", HOSTS)


def test_what_was_proven_once_proves_nothing_to_another(wires):
    ours, theirs = wires
    ours.say({"nonce": "of one that only listened"})
    greeting(theirs, "token", "node2")
    overheard = ours.hear()
    again, other = (lines.Wire(sock, 0.4) for sock in socket.socketpair())
    other.say(overheard)
    with pytest.raises(PermissionError):
        lines.greeted(again, "token", HOSTS)
    again.close()
    other.close()


@pytest.mark.parametrize("said", [b"[1]\n", b"nothing\n", b"\xff\xfe\n", b"[" * 60000 + b"\n", b"x" * 70000])
def test_what_is_no_object_ends_it(wires, said):
    ours, theirs = wires
    threading.Thread(target=theirs.sock.sendall, args=(said,), daemon=True).start()
    with pytest.raises(ConnectionError, match="it said"):
        ours.hear()


def test_a_line_that_drips_in_is_given_up_when_its_time_is_over(wires):
    ours, theirs = wires

    def drip():
        for _ in range(40):
            try:
                theirs.sock.sendall(b"x")
            except OSError:
                return
            time.sleep(0.05)

    threading.Thread(target=drip, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(OSError):
        ours.hear()
    assert time.monotonic() - started < 1.5


def test_what_changes_is_said_at_once_and_what_does_not_once_a_beat(wires):
    ours, theirs = wires
    changed, word = threading.Condition(threading.RLock()), [1]
    talk = threading.Thread(
        target=lambda: pytest.raises(
            OSError, lines.converse, ours, changed, 30, lambda: {"word": word[0]}, print
        ),
        daemon=True,
    )
    talk.start()
    assert theirs.hear() == {"word": 1}
    with changed:
        word[0] = 2
        changed.notify_all()
    assert theirs.hear() == {"word": 2}
    theirs.close()
    talk.join(5)
    assert not talk.is_alive()


def test_an_address_that_is_taken_is_awaited_and_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        threading.Thread(
            target=lines.listen, args=(address, lambda sock: sock.sendall(b"here"), 3), daemon=True
        ).start()
        time.sleep(0.3)
    deadline = time.monotonic() + 5
    while True:
        try:
            with socket.create_connection(address, timeout=1) as sock:
                assert sock.recv(10) == b"here"
                break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert "tries again: " in capsys.readouterr().out

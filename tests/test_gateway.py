"""The gateway: its file, its operations, and a real HAProxy on loopback."""

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.client import HTTPConnection

import engine
import pytest
import requests
from gang import TIMES

from roles.gateway import (
    Server,
    admin,
    drain,
    drained,
    ended,
    enough,
    operations,
    ready,
    render,
    seen,
    watch,
    watched,
)
from roles.gateway.operations import CONFIG, UNIT, Configuration, Loaded, Servers, configured
from roles.units.facts import InstalledUnits, timestamp
from tests.fake_openai import RIGHT
from tests.lab.shell import wait_until
from tests.load.driver import Load, in_flight_at, summary, troubled
from tests.load.gateway_log import servers
from tests.proxied import ADMIN, Agent, Gateway, Replica, fake

TWO = [
    Server("replica-0", "10.0.0.1", 8000, 30000, 256),
    Server("replica-1", "10.0.0.1", 8001, 30001, 256),
]


def test_each_replica_is_a_line_with_its_own_ports():
    written = render(TWO, 8080, "/run/rackserve-gateway")
    assert "    bind :8080\n" in written
    assert "    stats socket /run/rackserve-gateway/admin.sock mode 600 level admin" in written
    assert [line for line in written.splitlines() if line.startswith("    server replica")] == [
        "    server replica-0 10.0.0.1:8000 agent-port 30000 maxconn 256",
        "    server replica-1 10.0.0.1:8001 agent-port 30001 maxconn 256",
    ]


IN = {"replica-0": {"name": "replica-0", "in": True}, "replica-1": {"name": "replica-1", "in": False}}


def test_who_is_out_is_not_drained_again_nor_who_is_in_let_in(on_host):
    host = on_host({Servers: IN})
    admin = "python3 /opt/rackserve/libexec/gateway.py"
    assert host.commands(drain, replica="replica-0") == [f"{admin} drain replica-0"]
    assert host.commands(drain, replica="replica-1") == []
    assert host.commands(ready, replica="replica-0") == []
    assert host.commands(ready, replica="replica-1") == [f"{admin} ready replica-1"]


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("now", "does"),
    [
        (Loaded(EMPTY, active=True), []),
        (Loaded(EMPTY, active=False, outdated=True), []),
        (Loaded(EMPTY, active=True, outdated=True), ["reload"]),
        (Loaded("other", active=True), ["write", "reload"]),
        (Loaded("", active=False), ["write"]),
    ],
)
def test_what_runs_is_reloaded_when_its_file_changed_also_by_a_run_that_was_cut_off(on_host, now, does):
    said = on_host({Configuration: now}).commands(configured, content="")
    assert ["write" if CONFIG in one else one.split()[1] for one in said] == does


def test_a_file_that_is_younger_than_the_last_reload_is_not_loaded():
    output = [f"{EMPTY}  {CONFIG}", "changed=1764000000.5", "ActiveState=active",
              "StateChangeTimestamp=Mon 2025-11-24 16:00:00.400000 UTC"]  # fmt: skip
    assert timestamp("Mon 2025-11-24 16:00:00.400000 UTC") == 1764000000.4
    assert Configuration().process(output) == Loaded(EMPTY, active=True, outdated=True)
    assert Configuration().process(output[2:]) == Loaded("", active=True)


@pytest.fixture
def real(tmp_path):
    found = Gateway(tmp_path)
    yield found
    found.process.kill()
    found.process.wait()


def test_a_session_stays_with_its_replica_until_that_is_drained(real):
    (own,) = {real.get("/v1/x", **{"X-Session-ID": "a"}) for _ in range(4)}
    other = {"replica-0": "replica-1", "replica-1": "replica-0"}[own]
    answer: list[str] = []
    running = threading.Thread(target=lambda: answer.append(real.get("/v1/slow", **{"X-Session-ID": "a"})))
    running.start()
    wait_until(lambda: real.servers()[own]["sessions"] == 1, 5, "the request to run")
    real.admin("drain", own)
    assert {real.get("/v1/x", **{"X-Session-ID": "a"}) for _ in range(4)} == {other}
    running.join()
    assert answer == [own] and real.servers()[own]["sessions"] == 0
    real.admin("ready", own)
    assert real.servers()[own]["in"]


def test_who_is_drained_is_so_after_a_reload_and_where_the_new_configuration_says(real):
    real.admin("drain", "replica-1")
    moved = Replica("moved")
    real.configure([real.replicas[0].server_address[1], moved.server_address[1]])
    real.reload()
    assert [one["in"] for one in real.servers().values()] == [True, False]
    real.admin("ready", "replica-1")
    real.admin("drain", "replica-0")
    assert real.get("/v1/x") == "moved"


def test_a_connection_that_idles_at_a_reload_is_used_once_more_and_not_for_who_was_drained_since(real):
    connection = HTTPConnection("127.0.0.1", real.port, timeout=5)

    def ask():
        connection.request("GET", "/v1/x", headers={"X-Session-ID": "a"})
        answer = connection.getresponse()
        return answer.read().decode(), answer.headers["Connection"]

    own, _ = ask()
    kept = connection.sock
    real.reload()
    real.admin("drain", own)
    assert connection.sock is kept
    other, end = ask()
    assert other not in ("", own) and end == "close"
    wait_until(lambda: not admin.processes(real.run)[1], 5, "the old one to have ended")


def test_answers_of_before_a_reload_are_waited_for(real):
    answer: list[str] = []
    running = threading.Thread(target=lambda: answer.append(real.get("/v1/slow", **{"X-Session-ID": "a"})))
    running.start()
    wait_until(lambda: sum(one["sessions"] for one in real.servers().values()) == 1, 5, "it to run")
    (own,) = [name for name, one in real.servers().items() if one["sessions"]]
    real.reload()
    real.admin("drain", own)
    assert real.servers()[own]["sessions"] == 1 and not answer
    running.join()
    assert answer == [own]
    wait_until(lambda: real.servers()[own]["sessions"] == 0, 5, "it to have ended")


def test_who_was_answered_over_a_reload_is_not_sent_to_who_was_drained_since(real):
    """HAProxy of before the reload hears of no drain; who kept a connection to it could still ask it."""
    url, streamed = f"http://127.0.0.1:{real.port}/v1", {"stream": True, "timeout": 10}
    with requests.Session() as session, requests.get(f"{url}/stream/long", **streamed) as longer:
        session.headers["X-Session-ID"] = "a"
        with session.get(f"{url}/stream", **streamed) as answer:
            real.reload()
            own = answer.text
        real.admin("drain", own)
        assert session.get(f"{url}/x", timeout=5).text != own
        assert longer.text  # for whose sake it is still there


def test_who_keeps_a_connection_does_not_meet_one_that_a_replica_has_given_up(real):
    with requests.Session() as session:
        for _ in range(6):
            assert session.get(f"http://127.0.0.1:{real.port}/v1/x", timeout=5).text.startswith("replica")


def test_a_replica_that_is_gone_is_not_noticed_by_who_asks(real):
    real.replicas[1].shutdown()
    real.replicas[1].server_close()
    assert {real.get("/v1/x") for _ in range(20)} == {"replica-0"}


def test_a_replica_whose_engine_hangs_gets_nothing_though_its_health_is_well(real):
    own = engine.Engine(0, "key", TIMES)
    own.listens, own.well_at = True, time.monotonic() - 100
    said = Agent(own.says())
    real.configure([one.server_address[1] for one in real.replicas], [9, said.server_address[1]])
    real.reload()
    wait_until(lambda: real.servers()["replica-1"]["status"] == "DOWN (agent)", 10, "the agent to be heard")
    assert {real.get("/v1/x") for _ in range(4)} == {"replica-0"}
    said.said = "up"
    wait_until(lambda: real.servers()["replica-1"]["status"] == "UP", 10, "the agent to be heard")


def test_who_is_up_or_down_is_so_after_a_reload(real):
    """A first check that is late takes nobody out, and who is gone is not up until it comes."""
    own = real.replicas[0].server_address[1]
    real.configure([own, 9])
    real.reload()
    wait_until(lambda: real.servers()["replica-1"]["status"] == "DOWN", 10, "a look at it")
    real.reload()
    assert [one["status"] for one in real.servers().values()] == ["UP", "DOWN"]
    real.configure([own, real.replicas[1].server_address[1]])
    real.reload()
    wait_until(lambda: real.servers()["replica-1"]["status"] == "UP", 10, "another look at it")


@pytest.mark.parametrize("drained", [True, False])
def test_who_says_whether_a_replica_generates_is_where_the_new_configuration_says(real, drained):
    if drained:
        real.admin("drain", "replica-1")
    said = Agent("down")
    real.configure([one.server_address[1] for one in real.replicas], [9, said.server_address[1]])
    real.reload()
    if drained:
        real.admin("ready", "replica-1")
    wait_until(lambda: real.servers()["replica-1"]["status"] == "DOWN (agent)", 10, "the agent to be heard")


def test_without_a_replica_it_is_503_and_says_when_to_come_back(real):
    for name in ("replica-0", "replica-1"):
        real.admin("drain", name)
    answer = requests.get(f"http://127.0.0.1:{real.port}/v1/x", timeout=5)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"]["code"] == 503
    assert requests.get(f"http://127.0.0.1:{real.port}/health", timeout=5).status_code == 503


METRICS = (
    'vllm:time_to_first_token_seconds_sum{engine="0"} 3.0\n'
    'vllm:time_to_first_token_seconds_count{engine="0"} 6.0\n'
)


def test_what_replicas_do_for_a_while_is_counted_by_haproxy_and_by_vllm(real, monkeypatch):
    monkeypatch.setattr(admin, "RUN", str(real.run))
    monkeypatch.setitem(sys.modules, "gateway", admin)
    saying = Replica(METRICS)  # whatever it is asked
    where = {name: f"127.0.0.1:{saying.server_address[1]}" for name in ("replica-0", "replica-1")}
    before = watch.look(where)
    assert before["replica-0"]["first"] == (3.0, 6.0) and before["replica-0"]["next"] == (0, 0)
    for _ in range(4):
        real.get("/v1/x", **{"X-Session-ID": "a"})
    after = watch.look(where)
    counted = {name: watch.between(before[name], after[name], 1) for name in where}
    assert sorted(one["requests"] for one in counted.values()) == [0, 4]
    assert [one["errors"] for one in counted.values()] == [0, 0]
    gone = {"replica-0": "127.0.0.1:9"}
    assert watch.look(gone)["replica-0"]["first"] == (0, 0)


def answering(monkeypatch, *servers):
    """What the gateway says of its replicas, one after the other; and what else it is told."""
    told, said = [], list(servers)

    def run(_host, *words, **_):
        told.append(words)
        return True, json.dumps(said.pop(0) if len(said) > 1 else said[0]), ""

    monkeypatch.setattr(operations.remote, "run", run)
    monkeypatch.setattr(operations.remote, "arguments", lambda _: {})
    monkeypatch.setattr(operations.remote, "failure", lambda _, problem: problem)
    monkeypatch.setattr(operations, "INTERVAL", 0.01)
    monkeypatch.setattr(operations, "GRACE", 0.1)
    return told


def states(monkeypatch, *names):
    """How systemd says that the unit is, one after the other."""
    told = answering(monkeypatch)
    left = list(names)

    def run(_host, *words, **_):
        told.append(words)
        return True, f"{left.pop(0) if len(left) > 1 else left[0]}\n", ""

    monkeypatch.setattr(operations.remote, "run", run)
    return told


def one(name, sessions=0, status="UP", checked=True):
    return {"name": name, "sessions": sessions, "status": status, "checked": checked}


def test_answers_that_do_not_end_in_time_are_said(on_host, monkeypatch):
    answering(monkeypatch, [one("replica-0", 2)])
    (problem,) = on_host({}, executing=True).yielded(drained, replica="replica-0", timeout=0.05)
    assert problem == "replica-0 still answers 2 requests after 0 s"
    problems = []
    on_host({}, executing=True).yielded(drained, replica="replica-0", timeout=0.05, otherwise=problems.append)
    assert problems == [problem]


def test_a_replica_has_drained_when_its_last_answer_has_ended(on_host, monkeypatch):
    told = answering(monkeypatch, *([one("replica-0", left), one("replica-1", 9)] for left in (2, 1, 0)))
    assert on_host({}, executing=True).yielded(drained, replica="replica-0", timeout=5) == []
    assert len(told) == 3


def test_nobody_is_taken_out_while_another_is_down_unless_told(on_host, monkeypatch):
    answering(monkeypatch, [one("replica-0"), one("replica-1", status="DOWN (agent)")])
    asked = {"besides": ["replica-0"], "others": ["replica-1", "replica-2"]}
    (problem,) = on_host({}, executing=True).yielded(enough, **asked)
    assert problem.startswith("replica-1 is DOWN (agent): replica-0 cannot be spared; mend it")
    assert on_host({}, executing=True).yielded(enough, **asked, anyway=True) == []
    assert on_host({}).yielded(enough, **asked) == []


def test_one_that_has_just_come_back_is_waited_for(on_host, monkeypatch):
    answering(monkeypatch, [one("replica-1", status="UP 1/3 ".replace("UP", "DOWN"))], [one("replica-1")])
    assert on_host({}, executing=True).yielded(enough, besides=["replica-0"], others=["replica-1"]) == []


def test_a_replica_is_let_in_when_the_gateway_sees_it(on_host, monkeypatch):
    answering(monkeypatch, [one("replica-0", status="DOWN")], [one("replica-0")])
    assert on_host({}, executing=True).yielded(seen, replica="replica-0") == []
    answering(monkeypatch, [one("replica-0", status="DOWN (agent)")])
    answering(monkeypatch, [one("replica-0", status="UP 1/3", checked=False)])
    (problem,) = on_host({}, executing=True).yielded(seen, replica="replica-0")
    assert problem == "the gateway takes replica-0 for not looked at yet"
    answering(monkeypatch, [one("replica-0", status="DOWN (agent)")])
    problems = []
    (problem,) = on_host({}, executing=True).yielded(seen, replica="replica-0")
    assert problem == "the gateway takes replica-0 for DOWN (agent)"
    on_host({}, executing=True).yielded(seen, replica="replica-0", otherwise=problems.append)
    assert problems == [problem]


WELL = {"requests": 100, "errors": 0, "down": 0, "first": [0.1, 99], "next": [0.01, 999]}


def test_who_does_worse_than_the_others_is_named(on_host, monkeypatch):
    answering(monkeypatch, {"replica-0": {**WELL, "errors": 50}, "replica-1": WELL})
    problems = {}
    on_host({}, executing=True).yielded(
        watched, replicas=["replica-0"], servers=TWO, seconds=1, otherwise=problems.__setitem__
    )
    assert problems == {"replica-0": "50 of 100 requests failed, of the others 0 of 100"}


def test_a_replica_is_compared_with_those_of_its_own_model(on_host, monkeypatch):
    answering(monkeypatch, {"replica-0": {**WELL, "next": [1.0, 999]}, "replica-1": WELL})
    problems = {}
    other = [TWO[0], replace(TWO[1], models=("other",))]
    for among in (other, TWO):
        on_host({}, executing=True).yielded(
            watched, replicas=["replica-0"], servers=among, seconds=1, otherwise=problems.__setitem__
        )
        assert bool(problems) == (among is TWO)


def test_a_gateway_hands_over_and_ends_with_its_last_answer(on_host, monkeypatch):
    for left, timeout, cut, last in [
        (["deactivating", "inactive"], 5, False, "daemon-reload"),
        (["deactivating"], 0.05, False, "still answers after 0 s"),
        (["deactivating"], 0.05, True, "daemon-reload"),
    ]:
        told = states(monkeypatch, *left)
        host = on_host({InstalledUnits: [UNIT]}, executing=True)
        done = host.commands(ended, timeout=timeout, cut=cut)
        assert "KillSignal=SIGUSR1" in done[0] and "stop --no-block" in done[0] and last in done[-1]
        assert ("systemctl kill --signal=KILL " + UNIT in done) == cut and told
    assert on_host({InstalledUnits: []}).commands(ended, timeout=5) == []


def test_a_replica_that_is_not_there_is_named(real):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        real.admin("drain", "replica-7")
    assert "No such server" in failure.value.stderr


@pytest.fixture
def both(real):
    """Of two models, the second with an adapter and a name that is none of HAProxy's."""
    ports = [replica.server_address[1] for replica in real.replicas]
    real.configure(ports, models=[("llama",), ("org/it's b", "adapter")])
    real.reload()
    return real


LONG = "x" * 900_000


@pytest.mark.parametrize(
    ("asked", "headers", "answers"),
    [
        ({"model": "llama"}, {}, "replica-0"),
        ({"messages": [{"model": "llama", "content": LONG}], "model": "org/it's b"}, {}, "replica-1"),
        ({"model": "adapter"}, {}, "replica-1"),
        ({"messages": LONG + LONG, "model": "llama"}, {"X-Model": "adapter"}, "replica-1"),
        ({"model": "llama", "messages": LONG + LONG}, {}, "replica-0"),
    ],
)
def test_of_several_models_a_request_finds_its_own(both, asked, headers, answers):
    assert both.post(json.dumps(asked), **headers) == answers


@pytest.mark.parametrize("asked", [json.dumps({"model": "other"}), json.dumps({"input": LONG * 2}), "{", ""])
def test_a_model_that_is_not_there_is_answered_with_those_that_are(both, asked):
    said = json.loads(both.post(asked))["error"]
    assert said["code"] == 404 and said["message"].endswith("there are: llama, org/it's b, adapter")


def test_several_models_are_listed_and_shown_one_by_one(both):
    assert [one["id"] for one in json.loads(both.get("/v1/models"))["data"]] == [
        "llama",
        "org/it's b",
        "adapter",
    ]
    assert both.get("/v1/models/org/it's%20b") == "replica-1"
    assert both.get("/v1/models/llama") == "replica-0"


def test_a_connection_that_was_kept_finds_a_model_that_a_reload_brought(both):
    connection = HTTPConnection("127.0.0.1", both.port, timeout=5)

    def ask(model):
        connection.request("POST", "/v1/x", json.dumps({"model": model}))
        answer = connection.getresponse()
        return answer.read().decode()

    assert ask("llama") == "replica-0"
    kept = connection.sock
    both.configure([replica.server_address[1] for replica in both.replicas], models=[("llama",), ("new",)])
    both.reload()
    assert connection.sock is kept and ask("new") == "replica-1"


def test_who_is_drained_stays_so_when_another_model_comes_and_goes(real):
    ports = [replica.server_address[1] for replica in real.replicas]
    real.admin("drain", "replica-1")
    for models in ([("m",), ("n",)], [("n",), ("m",)], [("m",), ("m",)]):
        real.configure(ports, models=models)
        real.reload()
        assert [one["in"] for one in real.servers().values()] == [True, False]
    real.admin("ready", "replica-1")
    assert real.servers()["replica-1"]["in"]


PACE = 0.1  # seconds for a token


@pytest.fixture
def loaded(tmp_path, request):
    """A gateway over two replicas, ten users of locust, and the processes of the replicas."""
    ports = [18081, 18082]
    replicas = [fake(port, PACE) for port in ports]
    proxy = Gateway(tmp_path, ports)
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps({"good": RIGHT}))
    whole = (len(RIGHT), len(RIGHT))
    load = Load(tmp_path / "load", f"http://127.0.0.1:{proxy.port}", "key", model="m", expected=expected,
                users=10, short=whole, long=whole, limit=60, keep=request.param)  # fmt: skip
    with load:
        wait_until(lambda: load.ended > 20, 20, "answers")
        yield proxy, load, replicas
    for process in (*replicas, proxy.process):
        process.kill()
        process.wait()


def logged(proxy, lines):
    """The server of each request; HAProxy writes a line after the client has its last byte."""
    wait_until(lambda: "" not in servers(lines, proxy.log.read_text()), 5, "HAProxy's log of all requests")
    return servers(lines, proxy.log.read_text())


@pytest.mark.parametrize("loaded", [True], indirect=True)
def test_a_replica_that_is_drained_and_replaced_loses_no_request(loaded):
    proxy, load, replicas = loaded
    proxy.admin("drain", "replica-1")
    drained_at = time.time()
    wait_until(lambda: not proxy.servers()["replica-1"]["sessions"], 10, "its last answer")
    replicas[1].kill()
    replicas[1].wait()
    replicas[1] = fake(18082, PACE)
    back_at = time.time()
    proxy.admin("ready", "replica-1")
    wait_until(lambda: load.ended_since(back_at) > 20, 20, "answers")
    load.stop()
    lines = load.lines()
    assert in_flight_at(lines, drained_at) >= 9
    assert summary(lines)["ok"] == len(lines)
    to = list(zip((line["sent"] for line in lines), logged(proxy, lines), strict=True))
    assert {server for _, server in to} == {"replica-0", "replica-1"}
    assert {server for sent, server in to if drained_at < sent < back_at} == {"replica-0"}
    assert "replica-1" in {server for sent, server in to if sent > back_at}


@pytest.mark.parametrize("loaded", [False], indirect=True)
def test_when_a_replica_is_killed_exactly_its_running_requests_fail(loaded):
    proxy, load, replicas = loaded
    killed_at = time.time()
    replicas[0].kill()
    wait_until(lambda: load.ended_since(killed_at + 1) > 20, 20, "answers")
    load.stop()
    lines = load.lines()
    to = logged(proxy, lines)
    # Whose last byte was on its way is whole; the client may come to it a moment later.
    was_ended = [line for line in lines if line["outcome"] == "ok" and line["end"] < killed_at + 1]
    hurt = [
        line for line, server in zip(lines, to, strict=True)
        if server == "replica-0" and line["end"] > killed_at and line not in was_ended
    ]  # fmt: skip
    assert hurt and troubled(lines) == troubled(hurt) and not summary(hurt)["ok"]
    assert {line["outcome"] for line in hurt} <= {"failed", "truncated"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "admin.py servers"),
        (["frobnicate", "replica-0"], "admin.py drain|ready NAME"),
        (["drain"], "admin.py drain|ready NAME"),
        (["drain", "replica-0"], "does a gateway run here?"),
    ],
)
def test_what_cannot_be_done_by_hand_is_said_without_a_traceback(tmp_path, words, said):
    words = [sys.executable, ADMIN, *words, *([tmp_path, tmp_path] if len(words) > 1 else [])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_haproxy_whose_queue_is_full_for_a_moment_is_asked_again(tmp_path):
    path = str(tmp_path / "master.sock")
    with socket.socket(socket.AF_UNIX) as master, socket.socket(socket.AF_UNIX) as other:
        master.bind(path)
        master.listen(0)
        other.connect(path)
        with socket.socket(socket.AF_UNIX) as third, pytest.raises(BlockingIOError):
            third.setblocking(False)
            third.connect(path)
        later = threading.Timer(0.5, master.accept)
        later.start()
        admin.connected(path).close()
        later.join()
    with pytest.raises(ConnectionRefusedError):
        admin.connected(path)

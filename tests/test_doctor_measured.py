"""What --deep measured, judged: floors, NCCL's own words, who does not reach whom."""

import dataclasses

import pytest

from roles.doctor import Host, examine
from roles.doctor.rates import LINKS, busbw, floor, is_direct, network
from tests.seen import NCCL_SOCKET, RANKS, RECORDED, healthy


def recorded(name):
    return (RECORDED / f"nccl.{name}.txt").read_text().splitlines()


def found(id, hosts, on):
    (row,) = [row for row in examine(hosts) if (row.id, row.host) == (id, on)]
    return row


def changed(number, key, value, **expected):
    """The two healthy hosts, with one thing measured differently on one of them."""
    hosts = healthy(**expected)
    host = hosts[number - 1]
    hosts[number - 1] = dataclasses.replace(host, measured={**host.measured, key: value})
    return hosts


def both(*said):
    """The two healthy hosts, whose parts of an all-reduce ended so."""
    return [
        dataclasses.replace(host, measured={**host.measured, "allreduce replica-0": its})
        for host, its in zip(healthy(), said, strict=True)
    ]


@pytest.mark.parametrize(("ranks", "factor"), [(2, 1.0), (4, 1.5), (16, 1.875)])
def test_busbw_is_what_nccl_tests_call_so(ranks, factor):
    # doc/PERFORMANCE.md there: B = S/t * (2*(n-1)/n)
    assert busbw(10**9, 0.5, ranks) == pytest.approx(2e9 * factor)


@pytest.mark.parametrize(
    ("lines", "over", "direct"),
    [
        ("ib", "IB", True), ("ib-host", "IB", False), ("roce-init", "IB", False), ("ibext", "IB", False),
        ("socket", "Socket", False), ("socket-init", "Socket", False),
    ],
)  # fmt: skip
def test_what_nccl_says_it_went_over(lines, over, direct):
    assert (network(recorded(lines)), is_direct(recorded(lines))) == (over, direct)


def test_one_connection_over_tcp_is_tcp_and_silence_is_neither():
    assert network([*recorded("ib"), *NCCL_SOCKET]) == "Socket"
    assert (network([]), is_direct([])) == ("", False)


def test_between_nodes_a_gpu_has_a_port_and_the_lower_floor_counts():
    hosts = healthy()
    assert floor(RANKS, hosts, "IB").rate == pytest.approx(0.7 * 50e9)  # NCCL is told one port of the two
    for host in hosts:
        host.seen["nccl"] = None
    two = floor(RANKS, hosts, "IB")
    assert two.rate == pytest.approx(0.7 * 100e9) and "InfiniBand" in two.said
    four = dataclasses.replace(RANKS, gpus=1)
    assert floor(four, hosts, "IB").rate == pytest.approx(0.7 * 50e9)


def test_over_tcp_it_is_a_share_of_the_slowest_interface():
    hosts = healthy()
    hosts[1].seen["net"]["speed"] = "25000\n"
    said = floor(RANKS, hosts, "Socket")
    assert said.rate == pytest.approx(LINKS["Socket"].share * 25e9 / 8) and "gpu2" in said.said


@pytest.mark.parametrize(("gpu", "rate"), [
    ("H100", 0.7 * 450e9), ("A100-80", 0.7 * 300e9), ("B200", 0.7 * 900e9), ("L40S", 0.3 * 32e9),
])  # fmt: skip
def test_inside_a_node_it_is_a_share_of_its_gpus_link(gpu, rate):
    alone = dataclasses.replace(RANKS, hosts=("gpu1",))
    assert floor(alone, healthy(gpu=gpu)[:1], "").rate == pytest.approx(rate)


@pytest.mark.parametrize("speed", [None, "-1\n", ""])
def test_where_a_rate_is_not_known_there_is_no_floor(speed):
    hosts = healthy()
    hosts[0].seen["net"]["speed"] = speed
    assert floor(RANKS, hosts, "Socket") is None
    assert floor(RANKS, healthy(gpu=None), "IB") is None
    assert floor(RANKS, healthy(), "AWS") is None


SLOW = [[1024, 3e-5], [2**30, 1.5 * 2**30 / 20e9]]
FAST = [[1024, 3e-5], [2**30, 1.5 * 2**30 / 80e9]]


def test_a_replica_as_fast_as_its_links_says_its_figures():
    row = found("gpu.allreduce", healthy(), "gpu1")
    assert row.status == "pass"
    assert "4 ranks on gpu1, gpu2, busbw 80 GB/s at 1 GiB; 1 KiB in 0.03 ms" in row.evidence
    assert "over NET/IB with GPUDirect" in row.evidence and "the floor is 35 GB/s" in row.evidence
    assert [row.host for row in examine(healthy()) if row.id == "gpu.allreduce"] == ["gpu1"]


def test_one_below_the_floor_fails_with_figures():
    row = found(
        "gpu.allreduce", changed(1, "allreduce replica-0", {"rows": SLOW, "nccl": recorded("ib")}), "gpu1"
    )
    assert row.status == "fail" and "busbw 20 GB/s" in row.evidence
    assert "at least 35 GB/s was to be expected (70% of 50 GB/s, InfiniBand or RoCE of gpu1)" in row.evidence


TCP = {"rows": FAST, "nccl": NCCL_SOCKET}


@pytest.mark.parametrize(("expected", "words"), [
    ({}, "/etc/nccl.conf of gpu1 names HCAs"),
    ({"names_hcas": True, "nccl": ""}, "`hcas` of gpu1 names HCAs"),
])  # fmt: skip
def test_tcp_where_the_inventory_promises_infiniband_fails_however_fast(expected, words):
    row = found("gpu.allreduce", changed(1, "allreduce replica-0", TCP, **expected), "gpu1")
    assert row.status == "fail" and f"it would serve over TCP, and {words}" in row.evidence and row.fix


def test_one_node_of_two_that_went_over_tcp_is_enough():
    row = found("gpu.allreduce", changed(2, "allreduce replica-0", TCP), "gpu1")
    assert row.status == "fail" and "would serve over TCP" in row.evidence


def test_tcp_where_nothing_else_was_promised_has_tcps_floor():
    hosts = changed(1, "allreduce replica-0", TCP, nccl="NCCL_SOCKET_IFNAME==eth1\n")
    for host in hosts:
        host.seen["nccl"] = "NCCL_SOCKET_IFNAME==eth1\n"
    row = found("gpu.allreduce", hosts, "gpu1")
    assert row.status == "pass" and "25% of" not in row.evidence and "the floor is 3.12 GB/s" in row.evidence


def test_gloo_is_slow_without_a_failure():
    ranks = dataclasses.replace(RANKS, backend="gloo")
    row = found("gpu.allreduce", changed(1, "allreduce replica-0", {"rows": [[1024, 1.0]], "nccl": []},
                                         ranks=[ranks]), "gpu1")  # fmt: skip
    assert row.status == "warn" and "TCP by Gloo" in row.evidence


def test_one_that_broke_off_fails_and_one_that_could_not_begin_is_unknown():
    broke = {"error": "rank 3: DistBackendError: NCCL error", "nccl": ["NCCL version 2.30.7+cuda13.0"]}
    row = found("gpu.allreduce", changed(1, "allreduce replica-0", broke), "gpu1")
    assert (row.status, row.evidence) == ("fail", "replica-0: rank 3: DistBackendError: NCCL error")
    late, ill = {"error": "rank 0: DistNetworkError: timed out", "nccl": []}, {"error": "rank 3: CUDA error"}
    row = found("gpu.allreduce", both(late, ill), "gpu1")
    assert row.status == "unknown"
    assert row.evidence == "not measured: rank 3: CUDA error; rank 0: DistNetworkError: timed out"
    busy = {"error": "replica-0: gpu2 serves (rackserve-replica-0-vllm): its GPUs are busy"}
    row = found("gpu.allreduce", both(busy, busy), "gpu1")
    assert row.status == "unknown" and "gpu2 serves" in row.evidence


def test_of_several_replicas_on_a_host_the_worst_counts_and_all_are_said():
    other = dataclasses.replace(RANKS, replica="replica-1", slot=1)
    slow = {"rows": SLOW, "nccl": recorded("ib")}
    row = found("gpu.allreduce", changed(1, "allreduce replica-1", slow, ranks=[RANKS, other]), "gpu1")
    assert row.status == "fail" and "replica-0: 4 ranks" in row.evidence and "replica-1: 4" in row.evidence


def test_a_disk_says_its_speed_and_how_long_weights_take():
    row = found("disk.speed", healthy(), "gpu1")
    assert row.status == "pass" and "reads 4.29 GB/s, writes 2.15 GB/s" in row.evidence
    assert "the 70 GiB of weights that it loads take 18 s at best" in row.evidence


@pytest.mark.parametrize(("read", "wrote"), [(2.0, 0.5), (0.25, 3.0)])
def test_a_slow_disk_is_a_warning(read, wrote):
    slow = {"folder": "/srv", "direct": False, "wrote": [2**30, wrote], "read": [2**30, read]}
    row = found("disk.speed", changed(2, "disk", slow), "gpu2")
    assert row.status == "warn" and "through the page cache" in row.evidence


def test_a_disk_without_room_is_unknown():
    row = found("disk.speed", changed(2, "disk", {"error": "64 MiB free in /srv"}), "gpu2")
    assert (row.status, row.evidence) == ("unknown", "64 MiB free in /srv")


def reached(how, ports, held=(20000, 20499, 20999, 60999)):
    """What is said of gpu2, of whose ports gpu1 is turned away at some."""
    rows = [["gpu2", port, how if port in ports else "open"] for port in (8000, 20000, 20499, 20999, 60999)]
    hosts = changed(1, "connecting", {"rows": rows})
    hosts[1] = dataclasses.replace(
        hosts[1], measured={**hosts[1].measured, "listening": {"held": list(held)}}
    )
    return found("net.reach", hosts, "gpu2")


def test_ports_that_all_reach():
    row = reached("open", [])
    assert (row.status, row.evidence) == ("pass", "8000, 20000, 20499, 20999, 60999 from gpu1")


@pytest.mark.parametrize(("how", "ports", "said"), [
    ("silent", [20000, 60999], "silent from gpu1 to 20000, 60999 (a firewall drops them)"),
    ("refused", [20000], "refused from gpu1 to 20000 (a firewall rejects them)"),
    ("refused", [8000], "refused from gpu1 to 8000 (who has the port listens on another address)"),
    ("no route to host", [20000], "no route to host from gpu1 to 20000"),
])  # fmt: skip
def test_ports_that_are_not_reached_name_from_to_and_how(how, ports, said):
    row = reached(how, ports)
    assert (row.status, row.evidence) == ("fail", said) and "gpu2" in row.fix


def test_a_way_that_nobody_tried_is_unknown():
    row = found("net.reach", changed(1, "connecting", {"error": "gpu1: no sudo"}), "gpu2")
    assert (row.status, row.evidence) == ("unknown", "nothing is known of the way from gpu1")


def test_without_deep_nothing_is_said_of_what_was_not_measured():
    hosts = [dataclasses.replace(host, measured=None) for host in healthy()]
    assert not {row.id for row in examine(hosts)} & {"disk.speed", "net.reach", "gpu.allreduce"}


def test_a_host_that_was_not_seen_has_no_measured_row():
    one, two = healthy()
    rows = examine([one, Host(name="gpu2", expected=two.expected, lacks="away")])
    assert {row.id for row in rows if row.host == "gpu2"} == {"host.reach"}

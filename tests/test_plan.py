"""How a model is split over nodes."""

import itertools

import pytest

import models
from models.errors import PlanError
from models.limits import valid_tensor_parallel
from models.plan import MOST_RAYS, Node, Ports
from models.planner import plan

LLAMA = models.get("llama-3.1-70b-instruct")  # 64 heads, 8 KV heads, 80 layers
SMOL = models.get("smollm2-135m-instruct")  # 9 heads, 3 KV heads, 30 layers
TINY = models.get("tiny-llama")  # 4 heads, 2 KV heads, 4 layers


def nodes(*gpus):
    return [Node(f"gpu{rank}", f"10.0.0.{rank}", count) for rank, count in enumerate(gpus, 1)]


def split(replica):
    return replica.tensor_parallel, replica.pipeline_parallel, replica.hosts


def only(made):
    (replica,) = made.replicas
    return replica


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        ((8,), {}, (8, 1, ("gpu1",))),
        ((8, 8), {}, (8, 2, ("gpu1", "gpu2"))),
        ((8, 8, 8, 8), {}, (8, 4, ("gpu1", "gpu2", "gpu3", "gpu4"))),
        ((4, 4), {}, (4, 2, ("gpu1", "gpu2"))),
        ((8, 8), {"tensor_parallel": 8, "pipeline_parallel": 1}, (8, 1, ("gpu1",))),
        ((8, 8), {"tensor_parallel": 16, "pipeline_parallel": 1}, (16, 1, ("gpu1", "gpu2"))),
        ((8, 8), {"tensor_parallel": 4}, (4, 4, ("gpu1", "gpu2"))),
        ((8, 8), {"pipeline_parallel": 4}, (4, 4, ("gpu1", "gpu2"))),
        ((8, 8, 8), {"pipeline_parallel": 2}, (8, 2, ("gpu1", "gpu2"))),
        ((8,), {"tensor_parallel": 2, "pipeline_parallel": 1}, (2, 1, ("gpu1",))),
        ((0, 8, 0, 8), {}, (8, 2, ("gpu2", "gpu4"))),
    ],
)
def test_tensor_parallel_fills_a_node_and_pipeline_parallel_goes_across(gpus, options, expected):
    assert split(only(plan(LLAMA, nodes(*gpus), **options))) == expected


def test_three_nodes_of_one_gpu_can_share_a_tensor_parallel_of_three():
    replica = only(plan(SMOL, nodes(1, 1, 1), tensor_parallel=3))
    assert split(replica) == (3, 1, ("gpu1", "gpu2", "gpu3"))
    assert replica.gpus_per_node == 1


def test_pipeline_of_two_takes_the_first_two_of_three_nodes():
    assert split(only(plan(SMOL, nodes(1, 1, 1), pipeline_parallel=2))) == (1, 2, ("gpu1", "gpu2"))


def test_replicas_take_neighbours_in_the_inventorys_order():
    made = plan(LLAMA, nodes(8, 8, 8, 8), replicas=2)
    assert [(replica.name, *split(replica)) for replica in made.replicas] == [
        ("replica-0", 8, 2, ("gpu1", "gpu2")),
        ("replica-1", 8, 2, ("gpu3", "gpu4")),
    ]


def test_a_replica_does_not_take_the_nodes_that_are_left_over():
    made = plan(LLAMA, nodes(8, 8, 8), replicas=2)
    assert [replica.hosts for replica in made.replicas] == [("gpu1",), ("gpu2",)]


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        ((8,), {"replicas": 2}, [(4, 1, "gpu1", "0-3"), (4, 1, "gpu1", "4-7")]),
        ((8,), {"replicas": 2, "tensor_parallel": 2, "pipeline_parallel": 1},
         [(2, 1, "gpu1", "0-1"), (2, 1, "gpu1", "2-3")]),
        ((8,), {"replicas": 3}, [(2, 1, "gpu1", "0-1"), (2, 1, "gpu1", "2-3"), (2, 1, "gpu1", "4-5")]),
        ((8, 8), {"replicas": 3},
         [(4, 1, "gpu1", "0-3"), (4, 1, "gpu2", "0-3"), (4, 1, "gpu1", "4-7")]),
        ((4, 4, 4), {"replicas": 2, "tensor_parallel": 2, "pipeline_parallel": 3},
         [(2, 3, "gpu1 gpu2 gpu3", "0-1"), (2, 3, "gpu1 gpu2 gpu3", "2-3")]),
        ((4, 4, 4, 4), {"replicas": 3, "tensor_parallel": 2, "pipeline_parallel": 2},
         [(2, 2, "gpu1", "0-3"), (2, 2, "gpu2", "0-3"), (2, 2, "gpu3", "0-3")]),
    ],
)  # fmt: skip
def test_replicas_share_nodes_only_where_there_are_more_of_them(gpus, options, expected):
    made = plan(LLAMA, nodes(*gpus), **options)
    assert [
        (*split(replica)[:2], " ".join(replica.hosts), f"{replica.devices[0]}-{replica.devices[-1]}")
        for replica in made.replicas
    ] == expected


@pytest.mark.parametrize(
    ("model", "tensor_parallel", "works"),
    [
        (SMOL, 2, "1, 3"),  # does not divide 9 heads; 9 does not divide the vocabulary
        (LLAMA, 3, "1, 2, 4, 8, 16, 32, 64"),
        (LLAMA, 128, "1, 2, 4, 8, 16, 32, 64"),  # more than there are heads
        (TINY, 3, "1, 2, 4"),
    ],
)
def test_tensor_parallel_that_does_not_divide_the_heads_is_refused_naming_what_works(
    model, tensor_parallel, works
):
    with pytest.raises(PlanError) as refusal:
        plan(model, nodes(*[tensor_parallel] * 2), tensor_parallel=tensor_parallel)
    assert f"TP {tensor_parallel} does not divide" in str(refusal.value)
    assert f"TP can be {works} (set tensor_parallel)" in str(refusal.value)


def test_key_value_heads_are_divided_or_copied_never_split():
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 6, "hidden_size": 768,
        "intermediate_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 4,
        "vocab_size": 768, "max_position_embeddings": 64,
    }  # fmt: skip
    odd = models.Model(name="odd", repository="org/odd", config=config)
    assert valid_tensor_parallel(odd.architecture) == (1, 2, 4, 12)  # not 3 nor 6, which divide the heads
    with pytest.raises(PlanError, match=r"12 attention heads and 4 key-value heads; TP can be 1, 2, 4, 12 "):
        plan(odd, nodes(6), tensor_parallel=6)
    assert split(only(plan(odd, nodes(12)))) == (12, 1, ("gpu1",))


def test_pipeline_need_not_divide_the_layers_but_each_stage_needs_one():
    assert split(only(plan(LLAMA, nodes(8, 8, 8)))) == (8, 3, ("gpu1", "gpu2", "gpu3"))
    assert split(only(plan(TINY, nodes(1, 1, 1, 1, 1))))[:2] == (1, 4), "a node is left over"
    with pytest.raises(PlanError) as refusal:
        plan(TINY, nodes(1, 1, 1, 1, 1), pipeline_parallel=5)
    assert str(refusal.value).endswith(
        "PP 5 is more than its 4 layers; PP can be 1 to 4 (set pipeline_parallel)"
    )


@pytest.mark.parametrize(
    ("gpus", "options", "message"),
    [
        ((), {}, "no node of the inventory has a GPU"),
        ((0, 0), {}, "no node of the inventory has a GPU"),
        ((8, 4), {}, "different numbers of GPUs .gpu1 8, gpu2 4."),
        ((8,), {"tensor_parallel": 16}, "needs 16 GPUs; the inventory has 8"),
        ((8, 8), {"pipeline_parallel": 40, "tensor_parallel": 8}, "needs 320 GPUs; the inventory has 16"),
        ((8, 8), {"replicas": 17}, "17 replicas need as many GPUs; there are 16"),
        (
            (8, 8),
            {"replicas": 4, "tensor_parallel": 8},
            "has 4 for each replica .4 replicas on 2 nodes",
        ),
        ((8,), {"replicas": 8, "port": 65530}, "port is 65530: replicas that share a node .* 65537"),
        ((8,), {"replicas": 8, "port": 19999}, "port is 19999: replicas that share a node .* 20006"),
        ((8, 8), {"replicas": 2, "pipeline_parallel": 2, "tensor_parallel": 8}, "needs 16 GPUs.* has 8 "),
        ((2, 2, 2), {"tensor_parallel": 1, "pipeline_parallel": 5}, "5 ranks: they do not spread evenly"),
        ((8,), {"replicas": 0}, "replicas is 0"),
        ((8,), {"replicas": -1}, "replicas is -1"),
        ((8,), {"port": 0}, "port is 0"),
        ((8,), {"tensor_parallel": 0}, "at least 1"),
        ((8,), {"tensor_parallel": -2}, "at least 1"),
        ((8,), {"pipeline_parallel": 0}, "at least 1"),
        ((8,), {"pipeline_parallel": -1}, "at least 1"),
        ((8,), {"tensor_parallel": -2, "pipeline_parallel": -2}, "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(gpus, options, message):
    with pytest.raises(PlanError, match=message) as refusal:
        plan(LLAMA, nodes(*gpus), **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("gpus", "executor", "used"),
    [
        ((8,), "auto", "local"),
        ((8,), "ray", "local"),
        ((8,), "mp", "local"),
        ((8, 8), "auto", "ray"),
        ((8, 8), "ray", "ray"),
        ((8, 8), "mp", "mp"),
    ],
)
def test_one_node_needs_no_executor_and_several_use_ray_unless_told(gpus, executor, used):
    assert only(plan(LLAMA, nodes(*gpus), executor=executor)).executor == used


def test_ports_of_one_slot_differ_and_lie_below_the_ephemeral_range():
    ports = only(plan(LLAMA, nodes(8), port=9000)).ports
    assert (ports.api, ports.master, ports.ray) == (9000, 29501, 20000)
    assert max(ports.master, ports.ray + 999) < 32768


def test_replicas_that_share_a_node_share_no_port():
    taken = []
    for slot in range(MOST_RAYS):
        ports = Ports(8000, slot)
        taken += [ports.api, ports.master, ports.health, *range(ports.ray, ports.ray + 1000)]
    assert len(taken) == len(set(taken))
    assert max(taken) < 32768


def test_rank_is_the_place_in_the_replica_and_the_head_is_rank_zero():
    replica = only(plan(LLAMA, nodes(8, 8)))
    assert [replica.rank(name) for name in replica.hosts] == [0, 1]
    assert replica.head.name == "gpu1" and replica.node("gpu2").address == "10.0.0.2"
    with pytest.raises(ValueError):
        replica.rank("gpu3")


def test_a_plan_tells_what_is_on_a_host():
    made = plan(LLAMA, nodes(8, 8, 8), replicas=3)
    assert [replica.name for replica in made.on("gpu2")] == ["replica-1"]
    assert made.on("elsewhere") == ()
    assert made.model is LLAMA


def every_plan():
    """Every combination of small sizes that is not refused."""
    sizes = (None, 1, 2, 3, 4, 6, 8, 16)
    for model, gpus, count in itertools.product((LLAMA, SMOL, TINY), (1, 2, 3, 4, 8), range(1, 7)):
        for replicas, tp, pp in itertools.product({*range(1, count + 1), count * gpus, 9}, sizes, sizes):
            try:
                made = plan(
                    model, nodes(*[gpus] * count), replicas=replicas, tensor_parallel=tp, pipeline_parallel=pp
                )
            except PlanError as refusal:
                assert "\n" not in str(refusal)
                continue
            yield made, gpus, replicas, tp, pp


def resources(made):
    """Every (host, GPU) and (host, port) that a plan gives away."""
    for replica in made.replicas:
        ports = replica.ports
        ray = range(ports.ray, ports.ray + 1000) if replica.executor == "ray" else ()
        for host in replica.hosts:
            yield from ((host, "GPU", device) for device in replica.devices)
            yield from ((host, "port", port) for port in (ports.api, ports.master, ports.health, *ray))


def test_every_plan_that_is_made_holds_together():
    count = 0
    for made, gpus, replicas, tp, pp in every_plan():
        count += 1
        numbers = made.model.architecture
        assert len(made.replicas) == replicas
        taken = list(resources(made))
        assert len(taken) == len(set(taken)), "a GPU or a port in two replicas"
        held = [len(made.on(host)) for host in made.hosts]
        assert replicas * len(made.replicas[0].nodes) == sum(held) and max(held) - min(held) <= 1
        for replica in made.replicas:
            ranks = replica.tensor_parallel * replica.pipeline_parallel
            assert ranks == replica.gpus_per_node * len(replica.nodes)
            assert replica.gpus_per_node >= 1 and replica.devices[-1] < gpus
            assert numbers.num_attention_heads % replica.tensor_parallel == 0
            assert replica.tensor_parallel in valid_tensor_parallel(numbers)
            assert numbers.num_hidden_layers >= replica.pipeline_parallel
            assert tp in (None, replica.tensor_parallel) and pp in (None, replica.pipeline_parallel)
            assert (replica.executor == "local") == (len(replica.nodes) == 1)
    assert count > 500


def test_every_plan_that_leaves_tensor_parallel_open_keeps_it_inside_a_node():
    for made, gpus, _, tp, _ in every_plan():
        if tp is None:
            assert all(replica.tensor_parallel <= gpus for replica in made.replicas)


def test_no_plan_takes_more_nodes_than_its_ranks_need():
    for made, gpus, replicas, *_ in every_plan():
        for replica in made.replicas[:1] if replicas == 1 else ():
            ranks = replica.tensor_parallel * replica.pipeline_parallel
            fewer = range(-(-ranks // gpus), len(replica.nodes))
            assert not [size for size in fewer if ranks % size == 0]

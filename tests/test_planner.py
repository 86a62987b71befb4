"""Plans with memory: what fits where, what is refused, and what would fit instead."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import models
from models import advice, fit, hardware, kv, limits, memory
from models.errors import DoesNotFit, PlanError
from models.fit import Targets
from models.plan import Node, Request
from models.planner import choose, options, plan
from tests.test_plan import resources

HYPOTHESIS = settings(max_examples=60, deadline=None, derandomize=True)


def nodes(count, gpus=8, gpu="H100"):
    return [Node(f"gpu{rank}", f"10.0.0.{rank}", gpus, gpu) for rank in range(1, count + 1)]


def wanted(context=None, concurrency=1):
    return Targets(context=context, concurrency=concurrency)


def planned(name, *where, context=None, concurrency=1, **said):
    return plan(models.get(name), nodes(*where), targets=wanted(context, concurrency), **said)


# The recipes of Harvard's Kempner Institute, each of which was run there.
@pytest.mark.parametrize(
    ("name", "where", "split"),
    [
        ("llama-3.1-70b", (1, 4, "H100"), (4, 1)),
        ("llama-3.1-70b-instruct", (1, 4, "H100"), (4, 1)),
        ("llama-3.1-405b", (4, 4, "H100"), (4, 4)),
        ("llama-3.1-405b", (2, 8, "H100"), (8, 2)),
        ("llama-3.1-405b-instruct-fp8", (2, 4, "H100"), (4, 2)),
        ("llama-3.1-405b-instruct-fp8", (1, 4, "H200"), (4, 1)),
        ("llama-3.1-405b-instruct-fp8-redhat", (2, 4, "H100"), (4, 2)),
        ("llama-3.1-405b-instruct-fp8-redhat", (1, 4, "H200"), (4, 1)),
        ("deepseek-r1", (4, 4, "H100"), (4, 4)),
        ("deepseek-r1", (2, 4, "H200"), (4, 2)),
        ("deepseek-r1-0528", (4, 4, "H100"), (4, 4)),
        ("deepseek-r1-0528", (2, 4, "H200"), (4, 2)),
        ("qwen2.5-32b-instruct", (1, 1, "A100-80"), (1, 1)),
    ],
)
def test_the_recipes_that_were_run_at_kempner_fit(name, where, split):
    (replica,) = planned(name, *where).replicas
    assert (replica.tensor_parallel, replica.pipeline_parallel) == split
    assert replica.fit.max_model_len >= 8192


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("deepseek-r1", (1, 8, "H100")),
        ("deepseek-r1", (2, 4, "H100")),
        ("llama-3.1-405b", (1, 8, "H100")),
        ("llama-3.1-70b", (1, 1, "H200")),
        ("llama-3.1-405b-instruct-fp8", (1, 4, "H100")),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_missing_and_what_would_fit(name, where):
    with pytest.raises(DoesNotFit) as refusal:
        planned(name, *where)
    assert refusal.value.missing_bytes > 0
    assert "\n" not in str(refusal.value)
    assert advice.suggestions(models.get(name), nodes(*where), Request())


def test_r1_on_eight_h100_is_told_of_a_second_node_or_of_h200():
    found = advice.suggestions(models.get("deepseek-r1"), nodes(1), Request())
    assert [one.change for one in found] == [{"nodes": 2}, {"gpu": "H200"}]


def test_a_model_that_has_a_smaller_form_is_told_of_it():
    own = models.get("llama-3.1-405b-instruct")
    smaller = [models.get(name) for name in own.smaller]
    changes = [one.change for one in advice.suggestions(own, nodes(1), Request(), smaller)]
    assert {"model": "llama-3.1-405b-instruct-fp8-redhat"} in changes


@pytest.mark.parametrize(
    ("preset", "arguments", "also"),
    [
        (None, {}, True),
        (None, {"gpu-memory-utilization": 0.4}, False),
        (None, {"max-num-seqs": 100_000}, False),
        (None, {"gpu-memory-utilization": 0.6, "quantization": "fp8_per_tensor"}, False),
        ("throughput", {"gpu-memory-utilization": 0.66}, False),
        ("latency", {"gpu-memory-utilization": 0.66}, True),
    ],
)
def test_a_smaller_form_is_planned_with_what_the_user_says_of_the_model(preset, arguments, also):
    own = models.get("llama-3.1-405b-instruct")
    smaller = [models.get("llama-3.1-405b-instruct-fp8-redhat")]
    said = own.with_(preset=preset, arguments=arguments)
    assert not advice.fits(said, nodes(1), Request())
    found = [one for one in advice.suggestions(said, nodes(1), Request(), smaller) if "model" in one.change]
    assert bool(found) is also
    for one in found:
        assert one.model == smaller[0].with_(preset=preset, arguments=arguments)


def test_more_gpus_in_a_node_are_suggested_before_more_nodes():
    found = advice.suggestions(models.get("qwen3-235b-a22b"), nodes(1, 1, "H200"), Request())
    changes = [one.change for one in found]
    assert {"gpus": 4} in changes and {"gpus": 2} not in changes
    assert changes.index({"gpus": 4}) < changes.index({"nodes": 4})
    assert found[changes.index({"gpus": 4})].text == "4 H200 in a node"


def test_no_more_gpus_are_suggested_than_a_node_has():
    found = advice.suggestions(models.get("deepseek-r1"), nodes(1, 8), Request())
    assert found and not any("gpus" in one.change for one in found)


FP8 = {"vllm_args": {"quantization": "fp8_per_tensor"}}


@pytest.mark.parametrize(
    ("name", "where", "expected"),
    [
        ("llama-3.1-405b", (1, 8, "H100"), True),
        ("qwen3-235b-a22b", (1, 4, "H100"), True),
        ("llama-3.1-70b", (1, 1, "A100-80"), False),  # no FP8 there
        ("deepseek-r1", (1, 8, "H100"), False),  # is FP8
        ("llama-3.1-405b", (1, 1, "H100"), False),  # would not fit so either
    ],
)
def test_weights_that_are_not_quantized_may_be_made_fp8_while_loading(name, where, expected):
    own = models.get(name)
    assert not advice.fits(own, nodes(*where), Request())
    found = advice.suggestions(own, nodes(*where), Request())
    assert (FP8 in [one.change for one in found]) is expected


def test_weights_made_fp8_are_planned_with_what_vllm_makes_of_them():
    own, made = (models.get("llama-3.1-405b").with_(arguments=said) for said in ({}, FP8["vllm_args"]))
    (before,), (after,) = (plan(one, nodes(2)).replicas for one in (own, made))
    assert after.arguments["quantization"] == "fp8_per_tensor"
    stage = before.fit.stages[0].weights, after.fit.stages[0].weights
    for part in ("attention", "mlp"):
        assert stage[1][part] == pytest.approx(stage[0][part] / 2, rel=1e-6)
    assert stage[1]["embedding"] == stage[0]["embedding"]
    assert after.fit.stages[1].weights["head"] == before.fit.stages[1].weights["head"]


def test_who_asks_for_too_much_context_or_too_many_requests_is_told_how_many_fit():
    asked = Request(targets=wanted(131072, 64))
    found = advice.suggestions(models.get("llama-3.1-70b"), nodes(1, 4), asked)
    changes = {key: value for one in found for key, value in one.change.items()}
    assert 1 <= changes["concurrency"] < 64 and changes["context"] % 1024 == 0


def test_who_said_the_context_to_vllm_is_told_another_there():
    own = models.get("llama-3.1-70b").with_(arguments={"max-model-len": 131072})
    found = advice.suggestions(own, nodes(1, 4), Request(targets=wanted(None, 20)))
    (change,) = [
        one.change["vllm_args"] for one in found if "vllm_args" in one.change and "tokens" in one.text
    ]
    assert 8192 < change["max-model-len"] < 131072


def test_who_fixed_a_split_that_does_not_fit_is_told_of_one_that_does():
    fixed = Request(tensor_parallel=4, pipeline_parallel=2)
    found = advice.suggestions(models.get("llama-3.1-405b"), nodes(2), fixed)
    assert {"tensor_parallel": 8, "pipeline_parallel": 2} in [one.change for one in found]


def test_more_nodes_come_with_the_pipeline_that_they_need():
    found = advice.suggestions(models.get("llama-3.1-405b"), nodes(1), Request(pipeline_parallel=1))
    assert {"nodes": 2, "pipeline_parallel": 2} in [one.change for one in found]


def test_vllm_is_told_what_was_planned():
    (replica,) = planned("deepseek-r1", 2, context=32768).replicas
    flags = replica.arguments
    assert (flags["tensor-parallel-size"], flags["pipeline-parallel-size"]) == (8, 2)
    assert (flags["max-model-len"], flags["gpu-memory-utilization"]) == (32768, 0.92)
    assert flags["enable-expert-parallel"] is True
    assert (flags["max-num-seqs"], flags["max-num-batched-tokens"]) == (256, 8192)


def test_as_many_requests_as_are_wanted_at_once_may_run_at_once():
    (replica,) = planned("llama-3.1-70b", 1, context=1024, concurrency=300).replicas
    assert replica.arguments["max-num-seqs"] == 300


@pytest.mark.parametrize("said", [{"max-num-seqs": 10_000}, {"max-num-batched-tokens": 128}, {}])
def test_a_step_has_room_for_a_token_of_each_request(said):
    concurrency = 1 if said else 10_000
    model = models.get("llama-3.1-70b").with_(arguments=said)
    (replica,) = plan(model, nodes(2, 8, "H200"), targets=wanted(100, concurrency)).replicas
    assert replica.arguments["max-num-seqs"] >= concurrency
    assert replica.arguments["max-num-batched-tokens"] >= replica.arguments["max-num-seqs"]


def test_a_step_that_is_said_to_have_less_is_refused():
    model = models.get("llama-3.1-70b").with_(arguments={"max-num-seqs": 512, "max-num-batched-tokens": 128})
    with pytest.raises(PlanError, match="must be at least max-num-seqs, 512"):
        plan(model, nodes(2, 8, "H200"))


def test_no_memory_is_planned_where_the_gpu_is_not_known():
    (replica,) = plan(models.get("llama-3.1-405b"), nodes(1, 8, None)).replicas
    assert replica.fit is None and "max-model-len" not in replica.arguments


def test_different_gpus_are_not_mixed():
    with pytest.raises(PlanError, match="different GPUs .gpu1 H100, gpu2 H200.: serve them apart"):
        plan(models.get("llama-3.1-70b"), [*nodes(1), replace(nodes(2)[1], gpu="H200")])


@pytest.mark.parametrize("flag", ["tensor-parallel-size", "pipeline-parallel-size"])
def test_vllms_arguments_do_not_say_another_split_than_the_plan(flag):
    with pytest.raises(PlanError, match=f"{flag} is the plan's"):
        plan(models.get("llama-3.1-70b").with_(arguments={flag: 4}), nodes(1))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"targets": wanted(0)}, "context is 0"),
        ({"targets": wanted(-1)}, "context is -1"),
        ({"targets": wanted(10**12)}, "more than the model's own 131072"),
        ({"targets": wanted(None, 0)}, "concurrency is 0"),
        ({"targets": wanted(None, 10**9)}, "concurrency is 1000000000: must be at most"),
        ({"port": 65536}, "port is 65536"),
        ({"replicas": 10**9}, "1000000000 replicas need as many GPUs"),
        ({"tensor_parallel": 10**9}, "TP 1000000000 does not divide"),
        ({"pipeline_parallel": 10**9}, "PP 1000000000 is more than its 80 layers"),
    ],
)
def test_absurd_targets_are_refused_in_one_line(said, message):
    with pytest.raises(PlanError, match=message) as refusal:
        plan(models.get("llama-3.1-70b"), nodes(2), **said)
    assert "\n" not in str(refusal.value)


def test_data_parallelism_is_planned_inside_a_node_through_ray():
    own = models.get("qwen3-235b-a22b").with_(arguments={"data-parallel-size": 2})
    assert plan(own, nodes(1)).replicas[0].tensor_parallel == 4
    with pytest.raises(PlanError, match="over 2 nodes through Ray: vLLM's ranks do not meet"):
        plan(own, nodes(2))
    assert plan(own, nodes(2), replicas=2).replicas[1].executor == "local"


def test_a_share_with_which_vllm_does_not_start_is_refused():
    own = models.get("llama-3.1-70b")
    assert plan(own.with_(arguments={"gpu-memory-utilization": 0.98}), nodes(1)).replicas
    with pytest.raises(PlanError, match=r"gpu-memory-utilization is 1: .* at most 0\.98"):
        plan(own.with_(arguments={"gpu-memory-utilization": 1}), nodes(1))


def test_a_context_of_the_models_arguments_is_the_one_that_is_served():
    own = models.get("llama-3.1-70b")
    assert plan(own.with_(arguments={"max-model-len": 5000}), nodes(1)).replicas[0].fit.max_model_len == 5000
    assert plan(own.with_(arguments={"max-model-len": -1}), nodes(1)).replicas[0].fit.max_model_len == 131072
    with pytest.raises(PlanError, match="max-model-len is 'long'"):
        plan(own.with_(arguments={"max-model-len": "long"}), nodes(1))


def test_throughput_takes_more_replicas_and_latency_more_tensor_parallelism():
    quick = planned("llama-3.1-70b", 4, optimize="latency")
    many = planned("llama-3.1-70b", 4, optimize="throughput", replicas=None)
    assert len(quick.replicas) == 1 and quick.replicas[0].tensor_parallel >= 8
    assert len(many.replicas) == 8 and [len(many.on(host)) for host in many.hosts] == [2, 2, 2, 2]


@pytest.mark.parametrize("optimize", ["latency", "throughput"])
def test_what_is_optimized_for_is_no_worse_than_in_the_usual_plan(optimize):
    own, where = models.get("qwen3-235b-a22b"), nodes(4)
    found = options(own, where, Request(replicas=None))
    usual, best = (choose(found, Request(replicas=None, optimize=goal)) for goal in (None, optimize))
    usual_guess, best_guess = (
        advice.estimate(one.replicas[0], own, advice.loaded(one, Request())) for one in (usual, best)
    )
    if optimize == "latency":
        assert best_guess.per_token <= usual_guess.per_token
    else:
        assert best_guess.throughput * len(best.replicas) >= usual_guess.throughput * len(usual.replicas)


def test_every_alternative_fits_and_is_better_in_something():
    own, where = models.get("deepseek-r1"), nodes(4)
    chosen = plan(own, where)
    found = advice.alternatives(chosen, where, Request())
    assert 1 <= len(found) <= 3
    for one in found:
        assert one.plan.replicas[0].fit.fits and one.plan.replicas[0].split != chosen.replicas[0].split
        assert any(float(part.rpartition("x")[2]) > 1 for part in one.trades.split(", "))


@st.composite
def cases(draw):
    own = models.get(draw(st.sampled_from(models.names())))
    gpus = st.sampled_from([name for name, row in hardware.GPUS.items() if row.vendor != "cpu"])
    where = nodes(draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 3, 4, 6, 8])), draw(gpus))
    most = own.architecture.max_position_embeddings
    own = own.with_(preset=draw(st.sampled_from([None, "latency", "throughput", "long-context"])))
    targets = wanted(draw(st.none() | st.integers(1, most)), draw(st.integers(1, 300)))
    sizes = st.none() | st.sampled_from([1, 2, 4, 8])
    request = Request(replicas=draw(st.sampled_from([1, 1, 2, 5, None])), tensor_parallel=draw(sizes),
                      pipeline_parallel=draw(sizes), targets=targets,
                      optimize=draw(st.sampled_from([None, "latency", "throughput"])))  # fmt: skip
    return own, where, request


def tried(own, where, request):
    """The options of a case; a case that cannot be planned at all is none."""
    try:
        return options(own, where, request)
    except PlanError as refusal:
        assert "\n" not in str(refusal)
        assume(False)


@HYPOTHESIS
@given(cases())
def test_any_plan_that_is_returned_satisfies_every_constraint(case):
    own, where, request = case
    try:
        made = choose(tried(*case), request)
    except DoesNotFit:
        return
    numbers = own.architecture
    taken = list(resources(made))
    assert len(taken) == len(set(taken))
    assert {what for _, kind, what in taken if kind == "GPU"} <= set(range(where[0].gpus))
    assert set(made.hosts) <= {node.name for node in where}
    assert request.replicas in (None, len(made.replicas))
    for replica in made.replicas:
        split, found = replica.split, replica.fit
        assert limits.problem(numbers, split) is None
        assert request.tensor_parallel in (None, split.tensor)
        assert request.pipeline_parallel in (None, split.pipeline)
        assert split.gpus == replica.gpus_per_node * len(replica.nodes)
        assert replica.gpus_per_node <= where[0].gpus
        asked = request.targets.context or own.arguments.get("max-model-len")
        assert found.max_model_len <= numbers.max_position_embeddings
        assert found.max_model_len == asked if asked else found.max_model_len >= min(
            8192, numbers.max_position_embeddings
        )  # fmt: skip
        length = asked or min(8192, numbers.max_position_embeddings)
        needed = kv.needed(numbers, split, found.cache, length, request.targets.concurrency)
        for stage, need in zip(found.stages, needed, strict=True):
            assert need <= stage.available
            used = stage.weight_bytes + stage.activations + stage.graphs + stage.available
            assert used + stage.communication <= stage.total


@HYPOTHESIS
@given(cases())
def test_more_memory_never_makes_a_fit_fail(case):
    own, where, request = case
    assume(advice.fits(own, where, request))
    row = hardware.gpu(where[0].gpu)
    for option in tried(*case):
        split, how = option.replicas[0].split, option.replicas[0].fit
        if how.fits:
            larger = replace(row, memory=row.memory + 2**30)
            flags = option.replicas[0].arguments
            serving = memory.serving(own.architecture, flags, own.environment, larger)
            again = fit.fit(own.architecture, split, larger, serving, request.targets)
            assert again.fits and again.max_model_len >= how.max_model_len


@HYPOTHESIS
@given(cases())
def test_what_is_suggested_fits_when_it_is_asked_for(case):
    """Only what the suggestion says is changed."""
    own, where, request = case
    tried(*case)
    assume(not advice.fits(*case))
    smaller = [models.get(name) for name in own.smaller]
    for one in advice.suggestions(own, where, request, smaller):
        changed, there, chosen = request, where, own
        for what, value in one.change.items():
            if what == "vllm_args":
                chosen = chosen.with_(arguments=value)
            elif what == "nodes":
                there = nodes(value, where[0].gpus, where[0].gpu)
            elif what == "gpu":
                there = nodes(len(where), where[0].gpus, value)
            elif what == "gpus":
                there = nodes(len(where), value, where[0].gpu)
            elif what == "model":
                chosen = models.get(value)
            elif what in ("context", "concurrency"):
                changed = replace(changed, targets=replace(changed.targets, **{what: value}))
            else:
                changed = replace(changed, **{what: value})
        assert advice.fits(chosen, there, changed), one.text


def context_parallel(name, gpus, nodes=1, gpu="H200", **said):
    own = models.get(name).with_(preset="long-context")
    where = [Node(f"node{n}", f"10.0.0.{n}", gpus, gpu) for n in range(nodes)]
    replica = plan(own, where, **said).replicas[0]
    assert replica.arguments.get("decode-context-parallel-size", 1) == replica.split.context
    return replica.split.context


@pytest.mark.parametrize(
    ("name", "gpus", "said", "expected"),
    [
        ("deepseek-r1", 8, {}, 8),
        ("deepseek-r1", 4, {"nodes": 4}, 4),
        ("deepseek-r1", 8, {"nodes": 2, "tensor_parallel": 16}, 16),
        ("qwen3-235b-a22b", 8, {}, 2),  # 4 key-value heads, each copied once
        ("qwen3-235b-a22b", 4, {}, 1),
        ("llama-3.1-70b", 8, {}, 1),
        ("gpt-oss-120b", 8, {}, 1),  # layers with windows know none
    ],
)
def test_a_long_context_is_shared_by_as_many_ranks_as_tp_lets(name, gpus, said, expected):
    """The cases of vLLM's docs/serving/context_parallel_deployment.md among them."""
    assert context_parallel(name, gpus, **said) == expected


def test_what_is_said_of_context_parallelism_counts_more_than_the_preset():
    own = models.get("deepseek-r1").with_(
        preset="long-context", arguments={"decode-context-parallel-size": 2}
    )
    assert plan(own, [Node("node", "10.0.0.1", 8, "H200")]).replicas[0].split.context == 2


def test_cpus_know_no_context_parallelism():
    own, node = models.get("smollm2-135m-instruct"), [Node("node", "10.0.0.1", 9, "cpu")]
    assert plan(own.with_(preset="long-context"), node).replicas[0].split.context == 1
    with pytest.raises(PlanError, match="knows no DCP on CPUs"):
        plan(own.with_(arguments={"decode-context-parallel-size": 3}), node)
    assert not [option for option in options(own, node, Request()) if option.replicas[0].split.context > 1]

"""The catalogue and the values in it."""

import re

import pytest

import models
from models import Model
from models.errors import BadInput, ModelError, UnknownModel
from models.model import PRESETS

NUMBERS = {
    "architectures": ["LlamaForCausalLM"],
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}


def model(**over):
    return Model(**{"name": "m", "repository": "org/m", "config": NUMBERS, **over})


def test_names_are_sorted_and_each_is_got_by_its_own_name():
    assert models.names() == sorted(models.names())
    assert {"llama-3.1-70b-instruct", "smollm2-135m-instruct", "tiny-llama"} <= set(models.names())
    for name in models.names():
        assert models.get(name).name == name


def test_llama_70b_has_the_numbers_of_its_config_json():
    llama = models.get("llama-3.1-70b-instruct")
    assert llama.repository == "meta-llama/Llama-3.1-70B-Instruct"
    assert llama.gated and llama.ignore == ("original/*",)
    numbers = llama.architecture
    assert (numbers.num_hidden_layers, numbers.hidden_size, numbers.vocab_size) == (80, 8192, 128256)
    assert (numbers.num_attention_heads, numbers.num_key_value_heads) == (64, 8)


def test_no_model_asks_for_a_longer_context_than_it_has():
    for name in models.names():
        chosen = models.get(name)
        asked = chosen.arguments.get("max-model-len", 1)
        assert asked <= chosen.architecture.max_position_embeddings, name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama-3.1-70b-instrukt", "llama-3.1-70b-instruct"),
        ("smollm2-135m", "smollm2-135m-instruct"),
        ("tinyllama", "tiny-llama"),
    ],
)
def test_unknown_model_names_the_nearest(typed, meant):
    with pytest.raises(UnknownModel) as refusal:
        models.get(typed)
    assert str(refusal.value).startswith(f"unknown model {typed!r}; the nearest are: {meant}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama-3.3-70b", "llama-3.3-70b-instruct"),
        ("Llama-3.1-70B-Instruct", "llama-3.1-70b-instruct"),
        ("Llama-3.3-70B", "llama-3.3-70b-instruct"),
        ("DeepSeek-R1", "deepseek-r1"),
        ("llama-3.1-405b-fp8", "llama-3.1-405b-instruct-fp8"),
    ],
)
def test_a_model_has_other_names(typed, meant):
    assert models.get(typed) is models.get(meant)
    assert models.get(typed).name == meant


def test_no_other_name_is_a_models_own_or_leads_nowhere():
    assert not set(models._ALSO) & set(models.names())
    assert set(models._ALSO.values()) <= set(models.names())


@pytest.mark.parametrize("typed", ["", "zzzzzz", "#"])
def test_unknown_model_that_is_near_to_none_names_them_all(typed):
    with pytest.raises(UnknownModel) as refusal:
        models.get(typed)
    assert str(refusal.value).endswith(", ".join(models.names()))


def test_a_model_asked_for_by_a_number_is_unknown():
    with pytest.raises(UnknownModel, match="unknown model 405"):
        models.get(405)


def test_every_refusal_is_bad_input():
    for error in (UnknownModel, ModelError):
        assert issubclass(error, BadInput)


@pytest.mark.parametrize("field", sorted(set(NUMBERS) - {"architectures"}))
@pytest.mark.parametrize("value", [0, -1, "8", 1.5, True])
def test_a_config_with_a_number_that_is_none_is_refused_by_name(field, value):
    with pytest.raises(ModelError, match=f"^m: {field} is {value!r}: must "):
        model(config={**NUMBERS, field: value})


@pytest.mark.parametrize("field", sorted(set(NUMBERS) - {"num_key_value_heads"}))
def test_a_config_that_lacks_a_number_is_refused_by_name(field):
    with pytest.raises(ModelError, match=f"config.json has no {field}"):
        model(config={key: value for key, value in NUMBERS.items() if key != field})


def test_heads_that_do_not_divide_among_key_value_heads_are_refused():
    with pytest.raises(ModelError, match="9 attention heads do not divide among 2 key-value heads"):
        model(config={**NUMBERS, "num_attention_heads": 9})


@pytest.mark.parametrize("name", ["", "Llama", "a b", "-a", ".a", "a/b", "a_b", "a\n"])
def test_model_refuses_a_name_that_cannot_be_typed_or_be_a_path(name):
    with pytest.raises(ModelError, match="model name"):
        model(name=name)


@pytest.mark.parametrize("repository", ["", "m", "org/", "/m", "org/m/x", "org/a b", "https://hub/org/m"])
def test_model_refuses_a_repository_that_is_not_org_and_name(repository):
    with pytest.raises(ModelError, match="is not ORG/NAME"):
        model(repository=repository)


def test_with_lays_the_users_choices_over_the_models():
    own = model(arguments={"dtype": "auto", "seed": 1}, environment={"A": "1", "B": "2"})
    changed = own.with_(revision="v2", arguments={"seed": 7, "max-num-seqs": 4}, environment={"B": "3"})
    assert changed.revision == "v2"
    assert dict(changed.arguments) == {"dtype": "auto", "seed": 7, "max-num-seqs": 4}
    assert dict(changed.environment) == {"A": "1", "B": "3"}
    assert (changed.name, changed.repository, changed.architecture) == ("m", "org/m", own.architecture)


def test_with_leaves_the_model_it_was_called_on_as_it_was():
    own = model(arguments={"seed": 1}, environment={"A": "1"})
    own.with_(revision="v2", arguments={"seed": 7}, environment={"A": "2"})
    assert (own.revision, dict(own.arguments), dict(own.environment)) == ("main", {"seed": 1}, {"A": "1"})


def test_with_nothing_is_the_same_model():
    own = model(arguments={"seed": 1})
    assert own.with_() == own
    assert own.with_(revision=None, arguments=None, environment={}) == own


def test_a_models_arguments_cannot_be_changed_in_place():
    given = {"seed": 1}
    own = model(arguments=given)
    given["seed"] = 2
    assert own.arguments["seed"] == 1
    with pytest.raises(TypeError):
        own.arguments["seed"] = 3
    with pytest.raises(AttributeError):
        own.revision = "v2"


def test_a_flag_that_vllm_has_not_is_refused_with_the_nearest():
    with pytest.raises(ModelError, match="vLLM has no flag max-modl-len; did you mean max-model-len"):
        model().with_(arguments={"max-modl-len": 17})
    changed = model().with_(arguments={"max_model_len": 17, "no-enable-prefix-caching": True})
    assert dict(changed.arguments) == {"max-model-len": 17, "enable-prefix-caching": False}


def test_every_value_of_a_preset_says_where_it_is_from():
    """A file of vLLM's and its line, or a heading of a document that has none."""
    assert set(PRESETS) == {"latency", "throughput", "long-context"}
    for name, preset in PRESETS.items():
        for flag, one in preset.items():
            assert re.match(r"(docs|vllm)/[\w/.]+\.(md|py)(:\d+|: \w)", one.source), f"{name}: {flag}"
    for own in map(models.get, models.names()):
        assert not own.presets or "presets" in own.sources, own.name


def test_a_preset_is_under_the_models_own_and_what_the_user_says():
    own = model(presets={"throughput": {"max-num-seqs": 7}})
    assert own.with_(preset="throughput").arguments == {"max-num-seqs": 7, "max-num-batched-tokens": 16384}
    said = own.with_(preset="throughput", arguments={"max-num-seqs": 9})
    assert said.arguments["max-num-seqs"] == 9

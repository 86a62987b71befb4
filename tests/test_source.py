"""Models that are not in the catalogue: a folder with config.json, and perhaps an index."""

import json
import os
import subprocess
import sys

import pytest

import models
from models import source
from models.errors import BadInput, ModelError, UnknownModel
from models.plan import Node
from models.planner import plan
from models.weights import Split, tensors

TINY = dict(models.get("tiny-llama").config)


def size(config):
    own = source.make("m", "org/m", config, None).architecture
    return sum(tensor.bytes for tensor in tensors(own, Split()))


def index(config, **over):
    layers = range(config["num_hidden_layers"])
    named = {f"model.layers.{layer}.mlp.down_proj.weight": "a.safetensors" for layer in layers}
    return {"metadata": {"total_size": size(config)}, "weight_map": named, **over}


@pytest.fixture
def folder(tmp_path):
    """folder(config, index): a folder with those files, JSON or text."""

    def made(config, own_index=None):
        there = tmp_path / "My Model_1"
        there.mkdir()
        for name, content in (("config.json", config), ("model.safetensors.index.json", own_index)):
            if content is not None:
                (there / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return there

    return made


def refusal_of(folder):
    with pytest.raises(BadInput) as refusal:
        source.find(str(folder))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_folder_is_a_model_that_can_be_planned(folder):
    own = source.find(str(folder(TINY, index(TINY))))
    assert (own.name, own.repository) == ("my-model-1", "local/my-model-1")
    assert own.architecture == models.get("tiny-llama").architecture
    assert plan(own, [Node("gpu1", "10.0.0.1", 1, "L40S")]).replicas[0].fit.fits


@pytest.mark.parametrize("name", models.names())
def test_every_config_of_the_catalogue_is_known_when_it_is_read_from_a_folder(folder, name):
    own = models.get(name)
    assert source.find(str(folder(dict(own.config)))).architecture == own.architecture


def test_a_name_of_the_catalogue_is_that_model_even_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "tiny-llama").mkdir()
    monkeypatch.chdir(tmp_path)
    assert source.find("tiny-llama") is models.get("tiny-llama")


def test_a_name_that_is_nothing_names_the_nearest():
    with pytest.raises(UnknownModel, match="nearest are: tiny-llama"):
        source.find("tinny-llama")


@pytest.mark.parametrize("what", ["x" * 5000, "a/b/c", "\x00", "a\nb", "/nonexistent", "é"])
def test_what_cannot_be_a_name_is_unknown_in_one_line(what):
    assert "unknown model" in refusal_of(what)


def test_of_the_hub_a_second_copy_of_the_weights_is_not_staged(folder, monkeypatch):
    there = folder(TINY, index(TINY))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name, **_: str(there / name))
    own = source.find("Org/My_Model")
    assert (own.name, own.repository, own.ignore) == ("my-model", "Org/My_Model", ("original/*",))


def test_a_hub_that_is_not_reached_is_said_to_be_so(tmp_path):
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    code = "from models import source; source.find('org/m')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr.splitlines()[-1].startswith("models.errors.ModelError: org/m: the hub does not answer")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json"),
        ("", "config.json cannot be read"),
        ("{", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{}", "no architectures: is it a model's"),
        ({**TINY, "hidden_size": None}, "config.json has no hidden_size"),
        ({**TINY, "num_attention_heads": 0}, "num_attention_heads is 0"),
        ({**TINY, "architectures": ["BertModel"]}, "the memory of BertModel is not known; known are Llama"),
        ({**TINY, "quantization_config": {"quant_method": "awq"}}, "quantization 'awq' is not known"),
    ],
)
def test_a_config_that_is_none_is_refused_in_one_line(folder, config, message):
    assert message in refusal_of(folder(config))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"weight_map": None}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map, or an empty one"),
        ({"weight_map": {f"model.layers.{n}.x": "f" for n in range(3)}}, "has 3 layers and config.json 4"),
        ({"weight_map": {f"model.layers.{'9' * 5000}.x": "f"}}, "has 1 layers and config.json 4"),
        ({"metadata": {"total_size": 1}}, "says 1 bytes, and the shapes of config.json make"),
        ({"metadata": {"total_size": 10**12}}, "says 1000000000000 bytes"),
    ],
)
def test_an_index_of_another_model_is_refused(folder, over, message):
    assert message in refusal_of(folder(TINY, index(TINY, **over)))


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_an_index_that_is_none_is_refused(folder, text):
    assert "model.safetensors.index.json" in refusal_of(folder(TINY, text))


@pytest.mark.parametrize("metadata", [None, {}, [], 3, {"total_size": None}, {"total_size": "many"}])
def test_an_index_need_not_say_its_size(folder, metadata):
    assert source.find(str(folder(TINY, index(TINY, metadata=metadata))))


def test_an_index_may_have_the_layer_of_speculative_decoding(folder):
    config = {**models.get("deepseek-r1").config, "num_nextn_predict_layers": 1}
    named = {f"model.layers.{layer}.mlp.gate.weight": "f" for layer in range(62)}
    assert source.find(str(folder(config, {"weight_map": named})))


def test_a_tied_head_may_be_stored_again(folder):
    config = dict(models.get("smollm2-135m-instruct").config)
    twice = size(config) + config["vocab_size"] * config["hidden_size"] * 2
    assert source.find(str(folder(config, index(config, metadata={"total_size": twice}))))


def test_an_index_of_quantized_weights_is_not_compared_by_bytes(folder):
    config = dict(models.get("llama-3.1-405b-instruct-fp8").config)
    assert source.find(str(folder(config, index(config, metadata={"total_size": 7}))))


def test_what_a_model_error_says_begins_with_the_models_name():
    with pytest.raises(ModelError, match="^m: config.json has no "):
        source.make("m", "org/m", {"architectures": ["LlamaForCausalLM"]}, None)

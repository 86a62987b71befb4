"""A file of the catalogue: what is wrong in it is one line, with the file and the key."""

import pytest

import models
from models import entry
from models.errors import ModelError, UnknownModel

GOOD = """\
repository: org/Name
ignore: [original/*]
parameters: 1000
config:
  architectures: [LlamaForCausalLM]
  num_hidden_layers: 4
  hidden_size: 64
  intermediate_size: 128
  num_attention_heads: 8
  num_key_value_heads: 2
  vocab_size: 512
  max_position_embeddings: 2048
  rope_theta: 500000.0
arguments: {max_num_seqs: 4}
environment: {VLLM_X: "1"}
presets:
  latency: {max-num-seqs: 2}
sampling: {temperature: 0.6}
smaller: [other]
"""


@pytest.fixture
def read(tmp_path):
    """read(text, name): the model in a file of that name, beside one called other.yaml."""
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/own.jinja").touch()
    (tmp_path / "catalogue/other.yaml").touch()

    def load(text, name="good"):
        file = tmp_path / f"catalogue/{name}.yaml"
        file.write_text(text)
        return entry.load(file, tmp_path / "templates")

    return load


def test_a_file_is_a_model(read):
    model = read(GOOD + "template: own\n")
    assert (model.name, model.repository, model.template) == ("good", "org/Name", "own")
    assert (model.ignore, model.smaller) == (("original/*",), ("other",))
    assert dict(model.arguments) == {"max-num-seqs": 4}
    assert model.architecture.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("repository:", "repositry:", ": no such key: repositry; did you mean repository?"),
        ("sampling:", "Samplings:", ": no such key: Samplings; did you mean sampling?"),
        ("sampling:", "name:", ": no such key: name"),
        ("sampling:", "7:", ": no such key: 7"),
        ("repository: org/Name\n", "", ": has no repository"),
        ("repository: org/Name", "repository: 3", ": repository is 3: must be ORG/NAME"),
        ("repository: org/Name", "repository: Name", ": repository 'Name' is not ORG/NAME"),
        ("[original/*]", "original/*", ": ignore is 'original/*': must be a list"),
        ("[original/*]", "[3]", ": ignore: 3 must be text"),
        ("parameters: 1000", "parameters: many", ": parameters is 'many': must be a whole number"),
        ("parameters: 1000", "parameters: true", ": parameters is True: must be a whole number"),
        ("parameters: 1000", "repository: a/b", ", line 3: repository comes twice"),
        ("num_hidden_layers", "num_hiden_layers", ": config: has no num_hidden_layers; is it num_hiden"),
        ("num_key_value_heads", "num_key_value_head",
         ": config: nothing reads num_key_value_head; did you mean num_key_value_heads?"),
        ("num_hidden_layers: 4", "num_hidden_layers: 0", ": config: num_hidden_layers is 0: must be"),
        ("LlamaFor", "LlumaFor", ": config: the memory of LlumaForCausalLM is not known; known are Llama"),
        ("max_num_seqs", "max-num-seq", ": vLLM has no flag max-num-seq; did you mean max-num-seqs"),
        ("{max_num_seqs: 4}", "[max_num_seqs]", ": arguments is ['max_num_seqs']: must be keys with values"),
        ('"1"', "1", ": environment: VLLM_X is 1: must be text, in quotes"),
        ("latency:", "latncy:", ": presets: no such preset: latncy; did you mean latency?"),
        ("{max-num-seqs: 2}", "7", ": presets: latency is 7: must be keys with values"),
        ("max-num-seqs: 2", "max-sequences: 2", ": vLLM has no flag max-sequences"),
        ("{temperature: 0.6}", "0.6", ": sampling is 0.6: must be keys with values"),
        ("[other]", "[othr]", ": smaller: no such model: othr; did you mean other?"),
        ("smaller: [other]", "template: owm", ": template: models/templates/ has no owm.jinja; did"),
        ("smaller: [other]", "smaller: [", ", line 20: "),
        ("smaller: [other]", "\tsmaller: a", ", line 19: found character that cannot"),
        ("smaller: [other]", "? [3]\n: 1", ", line 19: found unhashable key"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_file_and_the_key(read, old, new, message):
    assert GOOD.count(old) >= 1
    with pytest.raises(ModelError) as refusal:
        read(GOOD.replace(old, new, 1))
    assert str(refusal.value).startswith(f"models/catalogue/good.yaml{message}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_that_has_no_keys_is_said_so(read, text):
    with pytest.raises(ModelError, match="good.yaml: must have keys: repository, config and others"):
        read(text)


def test_a_file_whose_name_cannot_be_typed_is_told_a_better_one(read):
    with pytest.raises(ModelError, match=r"catalogue/Good_7B.yaml: .* call the file good-7b.yaml"):
        read(GOOD, "Good_7B")


def test_yml_is_told_to_be_yaml(monkeypatch, tmp_path):
    (tmp_path / "good-one.yml").write_text(GOOD)
    monkeypatch.setattr(models, "_CATALOGUE", tmp_path)
    with pytest.raises(ModelError, match="models/catalogue/good-one.yml: call the file good-one.yaml"):
        models.get("good-one")
    with pytest.raises(UnknownModel):
        models.get("good-two")


def test_a_value_that_is_none_is_not_there(read):
    """`config.json` has nulls."""
    assert read(GOOD.replace("500000.0", "null")).architecture.num_hidden_layers == 4

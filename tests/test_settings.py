"""What a user may set, and what is said of a wrong value."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

import models
from deploys.cluster import Cluster
from deploys.planning import model_of, of_host, plan_of, plans_of, request_of
from deploys.settings import Settings, check_names, check_same, check_typos, pools, settings
from models import source
from models.errors import InventoryError
from models.plan import Node

HOST = {"address": "10.0.0.1"}
NODES = [Node("head", "10.0.0.1", 1)]


@pytest.fixture(autouse=True)
def no_token_outside(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


def test_defaults_are_a_cluster_of_eight_gpu_nodes_served_by_cuda():
    own = settings("gpu1", HOST)
    assert (own.gpus, own.runtime, own.executor, own.port, own.replicas) == (8, "cuda", "auto", 8000, None)
    assert (own.tensor_parallel, own.pipeline_parallel) == (None, None)
    assert (own.model, own.revision, own.weights_path, own.plugins, own.wheelhouse) == (
        "",
        None,
        None,
        None,
        None,
    )
    assert (own.api_key, own.hf_endpoint, own.hf_token, own.interface) == (None, None, None, None)
    assert (own.vllm_args, own.vllm_env) == ({}, {})


def test_what_is_given_is_taken():
    own = settings("gpu1", {**HOST, "gpus": 4, "model": "m", "vllm_args": {"seed": 1}, "executor": "mp"})
    assert (own.gpus, own.model, own.vllm_args, own.executor) == (4, "m", {"seed": 1}, "mp")


def test_hcas_are_named_as_nccl_names_them():
    assert settings("gpu1", HOST).hcas == "auto" and settings("gpu1", HOST).roce_traffic_class is None
    for hcas in ("mlx5_0", "mlx5_0:1,mlx5_1", "mlx5_0, mlx5_bond_0:1", False):
        assert settings("gpu1", {**HOST, "hcas": hcas}).hcas == hcas
    assert settings("gpu1", {**HOST, "roce_traffic_class": 0}).roce_traffic_class == 0


def test_a_driver_is_a_branch_a_version_or_left_alone():
    assert settings("gpu1", HOST).driver == "auto"
    assert settings("gpu1", {**HOST, "driver": 595}).driver == "595"  # of --data driver=595
    assert settings("gpu1", {**HOST, "driver": "580.95.05"}).driver == "580.95.05"
    assert settings("gpu1", {**HOST, "driver": False}).driver is False


def test_a_governor_is_a_name_or_left_alone():
    assert settings("gpu1", HOST).governor == "performance"
    assert settings("gpu1", {**HOST, "governor": "schedutil"}).governor == "schedutil"
    assert settings("gpu1", {**HOST, "governor": False}).governor is False


def test_none_in_the_inventory_means_the_default():
    assert settings("gpu1", {**HOST, "gpus": None, "executor": None}).gpus == 8


def test_what_belongs_to_ssh_is_passed_over():
    assert settings("gpu1", {**HOST, "ssh_user": "ubuntu", "_sudo": True}) == settings("gpu1", HOST)


def test_address_is_where_ssh_finds_the_host_unless_it_is_set():
    assert settings("gpu1", {"ssh_hostname": "192.0.2.1"}).address == "192.0.2.1"
    assert settings("gpu1", {"ssh_hostname": "192.0.2.1", "address": "10.0.0.1"}).address == "10.0.0.1"
    assert settings("192.0.2.7", {}).address == "192.0.2.7"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"executor": "mpi"}, "executor is 'mpi': must be one of auto, ray, mp"),
        ({"runtime": "rocm"}, "runtime is 'rocm': must be one of cuda, cpu"),
        ({"replicas": 0}, "replicas is 0: must be a whole number of at least 1"),
        ({"replicas": "two"}, "replicas is 'two': must be a whole number of at least 1"),
        ({"gateway": 3}, "gateway is 3: must be True, False, or names of hosts"),
        (
            {"gateway_port": 20001},
            "gateway_port is 20001: must be at most 65535, and not 20000 to 32767 (Ray, vLLM)",
        ),
        ({"replicas": True}, "replicas is True: must be a whole number of at least 1"),
        ({"port": 0}, "port is 0: must be a whole number of at least 1"),
        ({"port": "8000"}, "port is '8000': must be a whole number of at least 1"),
        ({"ready_timeout": 0.5}, "ready_timeout is 0.5: must be a whole number of at least 1"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0: must be a whole number of at least 1"),
        ({"tensor_parallel": -8}, "tensor_parallel is -8: must be a whole number of at least 1"),
        ({"pipeline_parallel": 2.0}, "pipeline_parallel is 2.0: must be a whole number of at least 1"),
        ({"model": 5}, "model is 5: must be text"),
        ({"mirror": 5}, "mirror is 5: must be text"),
        ({"uplink": "yes"}, "uplink is 'yes': must be True or False"),
        ({"mirror_options": "access_key_id=k"}, "mirror_options: must be a dictionary"),
        (
            {"mirror_options": {"secret_access_key": 5}},
            "mirror_options: secret_access_key must be text, in quotes",
        ),
        ({"gpu": ["H100"]}, "gpu is ['H100']: must be text"),
        ({"revision": 1.0}, "revision is 1.0: must be text"),
        ({"revision": "commits"}, "revision is 'commits': give a commit, in 40 digits"),
        ({"revision": ""}, "revision is '': give a commit, in 40 digits"),
        ({"gpus": -1}, "gpus is -1: must be a whole number of at least 0"),
        ({"gpus": "8"}, "gpus is '8': must be a whole number of at least 0"),
        ({"address": "gpu1.example"}, "address is 'gpu1.example': must be an IPv4 address of the host"),
        ({"address": "10.0.0.1/24"}, "address is '10.0.0.1/24': must be an IPv4 address of the host"),
        ({"port": 20100}, "port is 20100: must be at most 65535, and not 20000 to 32767 (Ray, vLLM)"),
        ({"api_key": "a b"}, "api_key: must be letters, digits and . ~ + / = _ - only"),
        ({"vllm_args": "--seed 1"}, "vllm_args is '--seed 1': must be a dictionary"),
        ({"driver": 580.95}, "driver is 580.95: must be a branch or a version, in quotes, or auto, or False"),
        (
            {"driver": "latest"},
            "driver is 'latest': must be a branch or a version, in quotes, or auto, or False",
        ),
        ({"driver": True}, "driver is True: must be a branch or a version, in quotes, or auto, or False"),
        ({"driver_source": "debian"}, "driver_source is 'debian': must be one of auto, nvidia, ubuntu"),
        ({"iommu": "off"}, "iommu is 'off': must be one of pt"),
        ({"governor": True}, "governor is True: must be a name as performance, or False"),
        ({"governor": "a b"}, "governor is 'a b': must be a name as performance, or False"),
        ({"hcas": "^mlx5_2"}, "hcas is '^mlx5_2': must be names as mlx5_0,mlx5_1:1, or auto, or False"),
        ({"hcas": True}, "hcas is True: must be names as mlx5_0,mlx5_1:1, or auto, or False"),
        ({"hcas": ""}, "hcas is '': must be names as mlx5_0,mlx5_1:1, or auto, or False"),
        ({"hcas": "=mlx5_0"}, "hcas is '=mlx5_0': must be names as mlx5_0,mlx5_1:1, or auto, or False"),
        ({"roce_traffic_class": 256}, "roce_traffic_class is 256: must be a whole number from 0 to 255"),
        ({"roce_traffic_class": True}, "roce_traffic_class is True: must be a whole number from 0 to 255"),
        ({"vllm_env": ["A=1"]}, "vllm_env is ['A=1']: must be a dictionary"),
    ],
)
def test_a_wrong_value_is_refused_naming_host_and_key(given, message):
    with pytest.raises(InventoryError) as refusal:
        settings("gpu1", {**HOST, **given})
    assert str(refusal.value) == f"gpu1: {message}"


@pytest.mark.parametrize("given", [{"port": 65536}, {"vllm_env": {"OMP_NUM_THREADS": 1}}])
def test_a_value_that_would_only_fail_later_is_refused_as_well(given):
    with pytest.raises(InventoryError, match=f"^gpu1: {next(iter(given))}"):
        settings("gpu1", {**HOST, **given})


def test_a_node_without_gpus_is_allowed():
    assert settings("gpu1", {**HOST, "gpus": 0}).gpus == 0


def test_a_host_whose_name_is_no_address_is_told_to_give_one():
    with pytest.raises(InventoryError, match="^gpu1: address is 'gpu1': must be an IPv4 address"):
        settings("gpu1", {})


def test_token_comes_from_the_environment_unless_it_is_set(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_outside")
    assert settings("gpu1", HOST).hf_token == "hf_outside"
    assert settings("gpu1", {**HOST, "hf_token": "hf_inside"}).hf_token == "hf_inside"


def test_secrets_do_not_show_in_the_repr():
    mirror = {"mirror": "s3://secret", "mirror_options": {"secret_access_key": "secret"}}
    own = Settings(address="10.0.0.1", hf_token="hf_secret", api_key="sk_secret", **mirror)
    assert "secret" not in repr(own)


def test_known_data_keys_pass():
    check_names(["model", "gpus", "hf_token", "ssh_user", "_sudo"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("modle", "model"),
        ("replica", "replicas"),
        ("tensor_paralel", "tensor_parallel"),
        ("tensor-parallel", "tensor_parallel"),
        ("wheelhuose", "wheelhouse"),
    ],
)
def test_an_unknown_data_key_is_refused_with_the_nearest(typed, meant):
    with pytest.raises(InventoryError) as refusal:
        check_names(["gpus", typed])
    assert str(refusal.value).startswith(f"--data {typed}: no such setting; did you mean {meant}")


def test_an_unknown_data_key_near_to_none_points_to_the_list():
    with pytest.raises(InventoryError, match="--data qqqq: no such setting; deploys/settings.py lists them"):
        check_names(["qqqq"])


@pytest.mark.parametrize(
    ("typed", "meant"), [("gpu_s", "gpus"), ("adress", "address"), ("hf-token", "hf_token")]
)
def test_a_key_of_a_host_that_is_nearly_a_setting_is_refused_with_the_host(typed, meant):
    with pytest.raises(InventoryError, match=f"^gpu1: {typed}: no such setting; did you mean {meant}\\?$"):
        check_typos("gpu1", ["gpus", typed])


def test_a_host_may_have_data_of_the_users_own():
    check_typos("gpu1", ["rack", "ssh_user", "_sudo", "nodes", *HOST])


def test_a_setting_that_must_be_the_same_everywhere_is_compared():
    hosts = {"gpu1": settings("gpu1", HOST), "gpu2": settings("gpu2", {**HOST, "replicas": 2})}
    with pytest.raises(InventoryError, match="replicas differs between gpu1 and gpu2"):
        check_same(hosts)


def test_what_belongs_to_a_host_may_differ():
    check_same({"gpu1": settings("gpu1", HOST), "gpu2": settings("gpu2", {**HOST, "gpus": 4})})


def test_hosts_that_serve_different_models_share_what_is_not_the_models():
    one, other = {**HOST, "model": "a", "gpus": 4}, {**HOST, "model": "b", "vllm_args": {"seed": 1}}
    hosts = {name: settings(name, data) for name, data in (("gpu1", one), ("gpu2", other), ("gpu3", one))}
    check_same(hosts)
    assert pools(hosts) == {"a": ["gpu1", "gpu3"], "b": ["gpu2"]}
    with pytest.raises(InventoryError, match="context differs between gpu1 and gpu3: set it for the group"):
        check_same({**hosts, "gpu3": replace(hosts["gpu3"], context=1024)})
    with pytest.raises(InventoryError, match="gateway differs between gpu1 and gpu2"):
        check_same({**hosts, "gpu2": replace(hosts["gpu2"], gateway=True)})


def test_a_host_without_gpus_needs_no_model_where_others_have_one():
    idle, serving = settings("head", {**HOST, "gpus": 0}), settings("gpu1", {**HOST, "model": "a"})
    assert pools({"head": idle, "gpu1": serving}) == {"a": ["gpu1"]}
    assert pools({"head": idle, "gpu1": replace(idle, gpus=8)}) == {"": ["head", "gpu1"]}
    assert pools({"head": replace(idle, model="b"), "gpu1": serving}) == {"a": ["gpu1"]}
    assert pools({"head": idle}) == {"": ["head"]}
    without = {"head": replace(idle, gpus=8), "gpu1": serving}
    assert pools(without) == {"": ["head"], "a": ["gpu1"]}


def test_replicas_of_each_model_have_numbers_of_their_own():
    hosts = {
        f"gpu{n}": settings(f"gpu{n}", {"address": f"10.0.0.{n}", "gpus": 1, "model": model, "replicas": 2})
        for n, model in enumerate(
            ("tiny-llama", "tiny-llama", "smollm2-135m-instruct", "smollm2-135m-instruct")
        )
    }
    control = SimpleNamespace(name="gpu0", get_fact=lambda fact, path: "")
    made = plans_of(Cluster(control, hosts))
    assert [[replica.name for replica in its.replicas] for its in made] == [
        ["replica-0", "replica-1"], ["replica-1000", "replica-1001"],
    ]  # fmt: skip
    assert [its.hosts for its in made] == [("gpu0", "gpu1"), ("gpu2", "gpu3")]
    with pytest.raises(
        InventoryError, match="^gpu4: no model, as others have: set it for the group, or gpus=0"
    ):
        plans_of(Cluster(control, {**hosts, "gpu4": settings("gpu4", {"address": "10.0.0.9"})}))
    assert of_host(made, "gpu3") == made[1] and of_host(made, "elsewhere") == made[0]


def test_what_is_optimized_chooses_the_preset_and_how_many_replicas():
    own = settings("gpu1", {**HOST, "model": "llama-3.1-70b-instruct", "optimize": "throughput"})
    assert request_of(own).replicas is None and request_of(own).optimize == "throughput"
    assert model_of(own).arguments["max-num-seqs"] == 1024
    assert request_of(settings("gpu1", HOST)).replicas == 1
    assert request_of(settings("gpu1", {**HOST, "replicas": 3, "optimize": "throughput"})).replicas == 3
    with pytest.raises(InventoryError, match="optimize is 'speed': must be one of latency, throughput"):
        settings("gpu1", {**HOST, "optimize": "speed"})


def test_a_revision_of_the_hubs_means_the_commit_that_was_staged_for_it(monkeypatch):
    """And the hub is asked as the control host is told to, whichever host comes first."""
    asked = []
    monkeypatch.setattr(source, "find", lambda *what: asked.append(what) or models.get("tiny-llama"))
    staged = {"/var/lib/rackserve/weights/org--m/main": "c0ffee"}
    control = SimpleNamespace(name="head", get_fact=lambda fact, path: staged.get(path, ""))
    own = Settings(model="org/m", gpus=1, hf_endpoint="http://head", **HOST)
    first = replace(own, hf_endpoint="http://other")
    made = plan_of(Cluster(control, {"head": own}), first, NODES)
    plan_of(Cluster(control, {"head": own}), replace(first, revision="v2"), NODES)
    assert asked == [("org/m", "c0ffee", "http://head", None), ("org/m", "v2", "http://head", None)]
    assert made.model.revision == "main"  # the path of what was staged

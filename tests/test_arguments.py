"""What vLLM, Ray and systemd are told: exact values."""

import shlex

import pytest
import yaml

import models
from models.plan import Node
from models.planner import plan
from roles import ray, service, vllm
from roles.vllm.arguments import arguments, render, variables

LLAMA = models.get("llama-3.1-70b-instruct")
NODES = [Node("gpu1", "10.0.0.1", 8, "H100"), Node("gpu2", "10.0.0.2", 8, "H100")]
PATH = "/var/lib/rackserve/weights/meta-llama--Llama-3.1-70B-Instruct/main"
COMMON = {
    "model": PATH,
    "served-model-name": "llama-3.1-70b-instruct",
    "host": "0.0.0.0",
    "port": 8000,
    "tensor-parallel-size": 8,
    "pipeline-parallel-size": 2,
    "shutdown-timeout": 30,
    "max-model-len": 131072,
    "max-num-seqs": 256,
    "max-num-batched-tokens": 8192,
    "gpu-memory-utilization": 0.92,
    "enable-auto-tool-choice": True,
    "tool-call-parser": "llama3_json",
    "override-generation-config": {"temperature": 0.6, "top_p": 0.9},
}
RAY_PORTS = [
    "--node-manager-port=20001",
    "--object-manager-port=20002",
    "--runtime-env-agent-port=20003",
    "--dashboard-agent-grpc-port=20004",
    "--dashboard-agent-listen-port=20005",
    "--metrics-export-port=20006",
    "--min-worker-port=20100",
    "--max-worker-port=20999",
]


def replica(nodes=NODES, **options):
    return plan(LLAMA, nodes, **options).replicas[0]


def test_ray_is_told_to_vllm_on_the_head():
    assert arguments(LLAMA, replica(), "gpu1", PATH) == {
        **COMMON,
        "distributed-executor-backend": "ray",
    }


def test_one_node_is_told_no_executor():
    assert arguments(LLAMA, replica(NODES[:1]), "gpu1", PATH) == {**COMMON, "pipeline-parallel-size": 1}


def test_mp_gives_every_node_its_rank_and_only_the_first_an_api():
    mp = {
        **COMMON,
        "distributed-executor-backend": "mp",
        "nnodes": 2,
        "node-rank": 0,
        "master-addr": "10.0.0.1",
        "master-port": 29501,
    }
    assert arguments(LLAMA, replica(executor="mp"), "gpu1", PATH) == mp
    assert arguments(LLAMA, replica(executor="mp"), "gpu2", PATH) == {
        **mp,
        "node-rank": 1,
        "headless": True,
    }


def test_the_users_arguments_go_over_ours():
    own = LLAMA.with_(arguments={"max-model-len": 4096, "shutdown-timeout": 0})
    told = arguments(own, plan(own, NODES, port=9000).replicas[0], "gpu1", PATH)
    assert (told["max-model-len"], told["shutdown-timeout"]) == (4096, 0)


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("executor", ["ray", "mp"])
def test_the_config_file_reads_back_as_what_was_told(name, executor):
    model = models.get(name).with_(
        arguments={"chat-template": "a: 'b'\n#c", "compilation-config": {"a": [1]}}
    )
    split = plan(
        model,
        [Node("a", "10.0.0.1", 1), Node("b", "10.0.0.2", 1)],
        pipeline_parallel=2,
        tensor_parallel=1,
        executor=executor,
    )
    told = arguments(model, split.replicas[0], "b", PATH)
    assert yaml.safe_load(render(told)) == told
    assert list(yaml.safe_load(render(told))) == list(told), "in the order a person would read"


def test_vllm_has_a_unit_on_the_head_under_ray_and_on_every_node_under_mp():
    unit = ["rackserve-replica-0-vllm.service"]
    assert [vllm.units(replica(), name) for name in ("gpu1", "gpu2")] == [unit, []]
    assert [vllm.units(replica(executor="mp"), name) for name in ("gpu1", "gpu2")] == [unit, unit]


def test_variables_keep_vllm_offline_and_its_caches_on_the_node():
    assert variables(LLAMA.with_(environment={"A": "1", "VLLM_NO_USAGE_STATS": "0"}), "/cache") == {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "0",
        "VLLM_ENGINE_READY_TIMEOUT_S": "7200",
        "VLLM_ENABLE_STARTUP_PLAN": "1",
        "VLLM_CACHE_ROOT": "/cache/vllm",
        "TORCHINDUCTOR_CACHE_DIR": "/cache/inductor",
        "TRITON_CACHE_DIR": "/cache/triton",
        "FLASHINFER_WORKSPACE_BASE": "/cache/flashinfer",
        "A": "1",
    }


def test_ray_head_pins_every_port():
    assert ray.command(replica(), "gpu1", "/env") == [
        "/env/bin/ray", "start", "--block", "--disable-usage-stats",
        "--head", "--port=20000", "--temp-dir=/var/lib/rackserve/ray-replica-0", "--include-dashboard=false",
        "--node-ip-address=10.0.0.1", "--node-name=gpu1", "--num-gpus=8", "--object-store-memory=268435456",
        *RAY_PORTS,
    ]  # fmt: skip


def test_ray_worker_joins_the_head():
    assert ray.command(replica(), "gpu2", "/env") == [
        "/env/bin/ray", "start", "--block", "--disable-usage-stats", "--address=10.0.0.1:20000",
        "--node-ip-address=10.0.0.2", "--node-name=gpu2", "--num-gpus=8", "--object-store-memory=268435456",
        *RAY_PORTS,
    ]  # fmt: skip


def test_ray_is_given_only_the_gpus_of_the_replica():
    spread = replica(tensor_parallel=2, pipeline_parallel=5)
    assert "--num-gpus=5" in ray.command(spread, "gpu1", "/env")


def test_a_driver_finds_its_own_ray_and_no_other():
    assert ray.driver(replica()) == {
        "RAY_ADDRESS": "10.0.0.1:20000",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/etc/rackserve/replica-0/ray.token",
    }
    assert ray.driver(replica(executor="mp")) == {}
    assert (ray.units(replica()), ray.units(replica(executor="mp"))) == (
        ["rackserve-replica-0-ray.service"],
        [],
    )


def test_ray_sockets_fit_in_a_path_of_107_bytes():
    # session_<26 of date and pid>/sockets/plasma_store
    session = "/session_2026-11-23_01-02-03_456789_4194304/sockets/plasma_store"
    assert len(ray.folder(replica(replicas=1)) + session) <= 107


def read_back(line):
    """An `Environment=` line as systemd reads it: C-style escapes in double quotes, %% for %."""
    assert line.startswith('Environment="') and line.endswith('"'), line
    text, value = line.removeprefix('Environment="')[:-1], ""
    characters = iter(text)
    for character in characters:
        assert character != '"', f"an unescaped quote ends the value: {line}"
        if character == "\\":
            escaped = next(characters)
            value += {"n": "\n", "t": "\t", "\\": "\\", '"': '"'}[escaped]
        elif character == "%":
            assert next(characters) == "%", f"a specifier is expanded: {line}"
            value += "%"
        else:
            value += character
    return value


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "",
        "two words",
        'a "quoted" word',
        "back\\slash",
        'trailing\\"',
        "100%",
        "%h/%i",
        "$HOME ${HOME}",
        "'single'",
        "{'json': [1]}",
        "a\nb",
        "x=y;z#no comment",
    ],
)
def test_a_variable_comes_out_of_the_unit_as_it_went_in(value):
    lines = service.environment_lines({"A": value})
    assert "\n" not in lines, "one variable is one line"
    assert read_back(lines) == f"A={value}"


def test_variables_are_one_line_each():
    assert service.environment_lines({"A": "1", "B": "2"}) == 'Environment="A=1"\nEnvironment="B=2"'
    assert service.environment_lines({}) == ""


def test_vllm_nccl_and_gloo_are_told_the_same_address():
    assert service.network("10.0.0.1", "eth1") == {
        "VLLM_HOST_IP": "10.0.0.1",
        "NCCL_SOCKET_IFNAME": "=eth1",
        "GLOO_SOCKET_IFNAME": "eth1",
    }


def sections(text):
    """{section: {key: [values]}} of a unit file, as systemd reads it."""
    found, section = {}, None
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith(("#", ";")):
            key, value = line.split("=", 1)
            section.setdefault(key, []).append(value)
    return found


VARIABLES = {"A": "1"}


def vllm_files(**options):
    told = arguments(LLAMA, replica(), "gpu1", PATH)
    made = vllm.files(replica(), told, "/env", VARIABLES, "the-key", **options)
    return {file.path: file for file in made}


def vllm_unit():
    return sections(vllm_files()["/etc/systemd/system/rackserve-replica-0-vllm.service"].content)


def test_vllms_unit_is_started_and_stopped_by_its_gang_alone():
    unit = vllm_unit()
    assert "Install" not in unit and unit["Service"]["Restart"] == ["no"]
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert unit["Service"]["User"] == ["rackserve"]
    assert unit["Service"]["ExecStart"] == ["/env/bin/vllm serve --config /etc/rackserve/replica-0/vllm.yaml"]
    assert unit["Service"]["EnvironmentFile"] == ["/etc/rackserve/replica-0/vllm.env"]
    assert unit["Service"]["Environment"] == ['"PATH=/env/bin:/usr/local/bin:/usr/bin:/bin"', '"A=1"']


def test_vllms_key_is_in_a_file_of_roots_and_in_no_other():
    files = vllm_files(template="{{ messages }}")
    (secret,) = [file for file in files.values() if "the-key" in file.content]
    assert (secret.path, secret.mode, secret.secret) == ("/etc/rackserve/replica-0/vllm.env", "600", True)
    assert secret.owner == "root:root" and "the-key" not in repr(files)
    assert files["/etc/rackserve/replica-0/chat-template.jinja"].content == "{{ messages }}"


def test_vllms_unit_waits_longer_than_the_shutdown_that_vllm_is_told():
    told = arguments(LLAMA, replica(), "gpu1", PATH)
    assert int(vllm_unit()["Service"]["TimeoutStopSec"][0]) > told["shutdown-timeout"]


def test_what_pins_memory_and_opens_files_is_not_kept_from_it_and_leaves_no_core():
    _, rays = ray.files(replica(), "gpu1", "/env", VARIABLES, "the-token")
    for unit in (vllm_unit(), sections(rays.content)):
        limits = {key: value for key, (value, *_) in unit["Service"].items() if key.startswith("Limit")}
        assert limits == {"LimitNOFILE": "1048576", "LimitMEMLOCK": "infinity", "LimitCORE": "0"}


def test_rays_unit_starts_from_an_empty_folder_of_its_own():
    split = replica()
    token, unit = ray.files(split, "gpu1", "/env", VARIABLES, "the-token")
    assert (token.content, token.owner, token.mode) == ("the-token\n", "root:rackserve", "440")
    assert token.secret and "the-token" not in unit.content
    read = sections(unit.content)
    assert read["Service"]["ExecStartPre"] == ["/bin/rm -rf /var/lib/rackserve/ray-replica-0"]
    assert shlex.split(read["Service"]["ExecStart"][0]) == ray.command(split, "gpu1", "/env")
    assert "Install" not in read and read["Service"]["Restart"] == ["no"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"replicas": 2}, [{}, {}]),
        ({"replicas": 3}, ["0,1,2,3", "0,1,2,3", "4,5,6,7"]),
        ({"replicas": 1, "tensor_parallel": 2, "pipeline_parallel": 1}, ["0,1"]),
    ],
)
def test_a_replica_that_does_not_have_all_gpus_of_its_nodes_is_told_which(options, expected):
    told = [service.devices(one) for one in plan(LLAMA, NODES, **options).replicas]
    assert told == [{"CUDA_VISIBLE_DEVICES": one} if one else {} for one in expected]

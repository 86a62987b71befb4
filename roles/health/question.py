"""Runs on a replica's first node, in the tools environment: what it answers, to be compared.

    question.py URL SECRETS

Prints the text that the model goes on with, greedily, which is the same each time for the same weights.
"""

import sys

PROMPT = "The capital of France is"
TOKENS = 8


def main(url, secrets):
    import requests

    with open(secrets) as file:
        key = dict(line.rstrip("\n").split("=", 1) for line in file)["VLLM_API_KEY"]
    session = requests.Session()
    session.trust_env = False  # a proxy of the node is not for its own server
    session.headers["Authorization"] = f"Bearer {key}"
    model = session.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"]
    body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    answer = session.post(f"{url}/v1/completions", json=body, timeout=300)
    answer.raise_for_status()
    print(repr(answer.json()["choices"][0]["text"]))


if __name__ == "__main__":
    main(*sys.argv[1:])

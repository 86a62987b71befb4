"""The whole job for Llama 3.1 70B Instruct, from bare OS to an endpoint that answers.

    pyinfra inventories/cluster.py deploys/serve_llama.py

Another model: `--data model=NAME`, or `model` in the inventory's group data.
"""

from pyinfra import local

LLAMA = {"model": "llama-3.1-70b-instruct"}

local.include("deploys/provision.py", data=LLAMA)
local.include("deploys/stage_weights.py", data=LLAMA)
local.include("deploys/serve.py", data=LLAMA)

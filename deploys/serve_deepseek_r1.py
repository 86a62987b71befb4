"""The whole job for DeepSeek-R1, from bare OS to an endpoint that answers.

pyinfra inventories/cluster.py deploys/serve_deepseek_r1.py
pyinfra inventories/cluster.py deploys/serve_deepseek_r1.py --data model=deepseek-r1-0528
"""

from pyinfra import local

R1 = {"model": "deepseek-r1"}

local.include("deploys/provision.py", data=R1)
local.include("deploys/stage_weights.py", data=R1)
local.include("deploys/serve.py", data=R1)

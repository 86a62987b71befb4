"""Any change, replica by replica: prepared and staged on every node first, then as `serve` replaces.

pyinfra inventories/cluster.py deploys/rolling_redeploy.py          # or: rackserve rollout
"""

from pyinfra import local

local.include("deploys/provision.py")
local.include("deploys/stage_weights.py")
local.include("deploys/serve.py")

"""This machine alone, without SSH:

pyinfra inventories/local.py deploys/serve.py --data model=NAME --data gpus=1
"""

head = [("@local", {"address": "127.0.0.1", "interface": "lo"})]
workers = []

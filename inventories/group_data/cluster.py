"""For every host of inventories/cluster.py. Uncomment what you need."""

ssh_user = "ubuntu"

# Through a jump host, as your ~/.ssh/config says it (pyinfra reads ProxyJump from there):
# ssh_config_file = "~/.ssh/config"

# model = "llama-3.1-70b-instruct"
# tensor_parallel = 8                   # GPUs of a node unless set
# pipeline_parallel = 2                 # nodes of a replica unless set
# vllm_args = {"max-model-len": 65536}  # vLLM's long flags, without dashes
# driver = "580.95.05"                  # NVIDIA's branch or version; False: yours (docs/provision.md)
# wheelhouse = "http://mirror.example/wheels/"  # no package index is asked

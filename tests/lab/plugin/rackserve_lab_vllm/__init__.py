"""The lab's stand-in for a GPU: vLLM's CPU platform, offered to Ray as one."""


def platform() -> str:
    """Name the platform class; vLLM calls this to choose its platform."""
    return "rackserve_lab_vllm.platform.LabPlatform"

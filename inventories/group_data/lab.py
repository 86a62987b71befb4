"""For the lab's nodes: the CPU build of vLLM, the lab's hub and its wheels."""

from tests.lab.cluster import Lab as _Lab
from tests.lab.paths import PLUGINS as _PLUGINS

model = "smollm2-135m-instruct"
pipeline_parallel = 2
runtime = "cpu"
plugins = str(_PLUGINS)
wheelhouse = f"{_Lab().hub_url}/wheelhouse/"
hf_endpoint = _Lab().hub_url
ready_timeout = 900

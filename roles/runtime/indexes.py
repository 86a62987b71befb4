"""Package indexes of vendors: the one place where their addresses are.

PyTorch keeps its CPU builds apart from the Python Package Index.
"""

TORCH_CPU = "https://download.pytorch.org/whl/cpu"

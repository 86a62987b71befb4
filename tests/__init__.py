import sys
from pathlib import Path

# What runs on a node is installed side by side there, and imports its neighbours so.
for role in ("weights", "gang"):
    sys.path.insert(0, str(Path(__file__).parents[1] / f"roles/{role}/node"))

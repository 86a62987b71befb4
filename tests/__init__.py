import sys
from pathlib import Path

# What runs on a node is installed side by side there, and imports its neighbours so.
sys.path.insert(0, str(Path(__file__).parents[1] / "roles/weights/node"))

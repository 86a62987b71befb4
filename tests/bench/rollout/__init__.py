"""Rollouts and faults under load, scenario by scenario: `make bench-rollout`, docs/rollout.md."""

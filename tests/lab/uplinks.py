"""The lab's inventory with two uplinks, one of which serves."""

from inventories.lab import head, workers

head = [(name, {**data, "uplink": True}) for name, data in head]
workers = [(name, {**data, "uplink": name == "node3"}) for name, data in workers]

"""Take the lock on the control host away from whoever holds it."""

from deploys.cluster import on_control
from roles import lock

if on_control():
    lock.broken(name="Break the lock")

"""The doctor: read-only checks of one host and across hosts, and causes found in journals.

A check is a function from what was seen to a verdict (checks/, registered by check.py); what is
seen comes from node/look.py, one round for each host. docs/doctor.md says how to add one. What is
measured (measure.py) is judged by checks like the others.
"""

from .check import CHECKS, Expected, Host, Ranks
from .examine import Finding, examine, registry
from .facts import Look
from .measure import begun, ended, measured, watch
from .operations import look, looked, sound
from .signatures import SIGNATURES, Cause, diagnose

__all__ = [
    "CHECKS", "SIGNATURES", "Cause", "Expected", "Finding", "Host", "Look", "Ranks", "begun", "diagnose",
    "ended", "examine", "look", "looked", "measured", "registry", "sound", "watch",
]  # fmt: skip

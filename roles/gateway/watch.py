"""Runs on a gateway's host, as root, on its own Python: how replicas fare for a while.

    watch.py SECONDS NAME=ADDRESS:PORT...

Prints {name: {"requests", "errors", "first", "next"}} of that time as JSON: what HAProxy sent there and
what of it failed, and the mean seconds until the first token and from token to token, as vLLM's metrics
have it; null where nothing was measured.
"""

import http.client
import json
import re
import sys
import time

LATENCIES = {"first": "time_to_first_token_seconds", "next": "inter_token_latency_seconds"}


def main(seconds, *replicas):
    where = dict(one.split("=", 1) for one in replicas)
    before = look(where)
    time.sleep(float(seconds))
    after = look(where)
    print(json.dumps({name: between(before[name], after[name]) for name in where}))


def look(where):
    import gateway  # admin.py, as it is called where it is installed

    counted = {one["name"]: one for one in gateway.servers(gateway.RUN)}
    return {
        name: {
            "requests": counted.get(name, {}).get("requests", 0),
            "errors": counted.get(name, {}).get("errors", 0),
            **metrics(place),
        }
        for name, place in where.items()
    }


def metrics(place):
    """{latency: (seconds in all, how many)} of the vLLM there; of one that does not say, zeros."""
    connection = http.client.HTTPConnection(*place.split(":"), timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        text = ""
    finally:
        connection.close()
    return {
        key: (total(text, f"{name}_sum"), total(text, f"{name}_count")) for key, name in LATENCIES.items()
    }


def total(text, name):
    return sum(map(float, re.findall(rf"(?m)^vllm:{name}{{[^}}]*}} (\S+)$", text)))


def between(before, after):
    window = {key: max(0, after[key] - before[key]) for key in ("requests", "errors")}
    for key in LATENCIES:
        seconds, count = (after[key][at] - before[key][at] for at in (0, 1))
        window[key] = seconds / count if count > 0 else None
    return window


if __name__ == "__main__":
    main(*sys.argv[1:])

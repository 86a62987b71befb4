"""Runs on a gateway's host, as root, on its own Python: how replicas fare for a while.

    watch.py SECONDS NAME=ADDRESS:PORT...

Prints {name: {"requests", "errors", "down", "first", "next", "since"}} as JSON: what HAProxy sent there in
that time, what of it failed, for how many seconds it was down; [mean seconds, how many] until the first
token and from token to token, as vLLM's metrics have it, null where nothing was measured; `since` has these
since vLLM started.
"""

import http.client
import json
import re
import sys
import time

COUNTED = ("requests", "errors", "down")
LATENCIES = {"first": "time_to_first_token_seconds", "next": "inter_token_latency_seconds"}


def main(seconds, *replicas):
    where = dict(one.split("=", 1) for one in replicas)
    before = look(where)
    time.sleep(float(seconds))
    after = look(where)
    print(json.dumps({name: between(before[name], after[name], float(seconds)) for name in where}))


def look(where):
    import gateway  # admin.py, as it is called where it is installed

    counted = {one["name"]: one for one in gateway.servers(gateway.RUN)}
    return {
        name: {
            **{key: counted.get(name, {}).get(key, 0) for key in COUNTED},
            **metrics(place),
        }
        for name, place in where.items()
    }


def metrics(place):
    """{latency: (seconds in all, how many)} of the vLLM there, and who waits; zeros if it does not say."""
    connection = http.client.HTTPConnection(*place.split(":"), timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        text = ""
    finally:
        connection.close()
    return {
        **{
            key: (total(text, f"{name}_sum"), total(text, f"{name}_count")) for key, name in LATENCIES.items()
        },
        "waiting": total(text, "num_requests_waiting"),
    }


def total(text, name):
    return sum(map(float, re.findall(rf"(?m)^vllm:{name}{{[^}}]*}} (\S+)$", text)))


def between(before, after, lasted):
    window = {key: max(0, after[key] - before[key]) for key in COUNTED}
    window["since"] = {key: mean(*after[key]) for key in LATENCIES}
    for key in LATENCIES:
        window[key] = mean(*(after[key][at] - before[key][at] for at in (0, 1)))
    return {**window, "first": queued(window["first"], after["waiting"], lasted)}


def mean(seconds, count):
    return [seconds / count, count] if count > 0 else None


def queued(first, waiting, lasted):
    """The means are of those that had their turn; the last who waits has all the others before it."""
    average, count = first or (0.0, 0)
    known = count + waiting
    waits = min(lasted, waiting * lasted / max(count, 1))  # no one has waited longer here
    return [max(average, waits), known] if known else None


if __name__ == "__main__":
    main(*sys.argv[1:])

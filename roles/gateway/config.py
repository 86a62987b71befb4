"""HAProxy's configuration for the replicas of one model, or of several. Pure; for HAProxy 2.4.13 and up."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Of the replicas of one model. Those of several have one each, with the model's name after it.
BACKEND = "replicas"

#: Its port, on loopback.
STATISTICS = 8404

#: Requests of one conversation find the replica that has its prefix in its KV cache.
SESSION = "x-session-id"

#: Says which model, where the body does not, or too late.
MODEL = "x-model"

#: Seconds that a client's connection may be without a request: longer than proxies keep theirs (nginx: 60).
IDLE = 75

#: Bytes of a request in which the model's name must be; of several models each is read so far.
READ = 1 << 20


@dataclass(frozen=True)
class Server:
    """A replica, as the gateway sees it: its API, who says whether it generates, what it runs at once.

    `models` are the names by which it answers, first the model's own.
    """

    name: str
    address: str
    port: int
    health_port: int
    requests: int
    models: tuple[str, ...] = ("",)

    @property
    def model(self) -> str:
        return self.models[0]

    @property
    def place(self) -> str:
        return f"{self.address}:{self.port}"


def render(servers: Sequence[Server], port: int, run: str) -> str:
    """The whole file; `run` is the folder of the socket and of the servers' state."""
    backends = _backends(servers)
    down = "".join(f" {{ nbsrv({backend}) lt 1 }}" for backend in backends)
    return "".join([
        _GLOBAL.format(run=run, idle=IDLE, read=f"    tune.bufsize {READ}\n" if len(backends) > 1 else ""),
        _FRONTEND.format(port=port, down=down),
        _by_model(backends) if len(backends) > 1 else f"{_HANDED_ON}    default_backend {BACKEND}\n",
        *(_backend(name, its) for name, its in backends.items()),
        _AGAIN.format(port=port),
        _STATISTICS.format(statistics=STATISTICS),
    ])  # fmt: skip


def _backends(servers: Sequence[Server]) -> dict[str, list[Server]]:
    """{backend: its servers}: one of each model."""
    models = dict.fromkeys(one.model for one in servers)
    if len(models) < 2:
        return {BACKEND: list(servers)}
    return {_named(model): [one for one in servers if one.model == model] for model in models}


def _named(model: str) -> str:
    """Of what HAProxy allows in a name."""
    return f"{BACKEND}-{re.sub(r'[^A-Za-z0-9_.-]', ':', model)}"


def _by_model(backends: Mapping[str, Sequence[Server]]) -> str:
    names = {backend: list(dict.fromkeys(model for one in its for model in one.models))
             for backend, its in backends.items()}  # fmt: skip
    every = [name for its in names.values() for name in its]
    listed = {
        "object": "list",
        "data": [{"id": name, "object": "model", "owned_by": "vllm"} for name in every],
    }
    message = (
        f"no such model, or none in the first {READ >> 20} MiB of the request (the header {MODEL}"
        f" says it, too); there are: {', '.join(every)}"
    )
    unknown = {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}
    uses = [f"    use_backend {backend} if {{ var(txn.model) -m str -- {shlex.join(its)} }}\n"
            for backend, its in names.items()]  # fmt: skip
    return _BY_MODEL.format(
        header=MODEL, listed=shlex.quote(json.dumps(listed)), unknown=shlex.quote(json.dumps(unknown)),
        every=shlex.join(every), uses=_HANDED_ON + "".join(uses),
    )  # fmt: skip


def _backend(name: str, servers: Sequence[Server]) -> str:
    lines = (
        f"    server {one.name} {one.place} agent-port {one.health_port} maxconn {one.requests}\n"
        for one in servers
    )
    return _BACKEND.format(name=name, session=SESSION, servers="".join(lines))


# Why not ...
# on-marked-down shutdown-sessions: a health check that is late would cut answers that are well. A node
#   that is gone is found by keep-alive, a process that is gone by its connection.
# retry-on all-retryable-errors: a replica that dies of a request would take the others along.
_GLOBAL = """\
# Written by Rackserve; changes here are overwritten.
global
    user haproxy
    group haproxy
    chroot /var/lib/haproxy
    log stdout format raw daemon info
    maxconn 8000
    hard-stop-after 2h
    stats socket {run}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 1m
    server-state-file {run}/servers.state
{read}
defaults
    mode http
    log global
    option httplog
    option dontlognull
    # Tokens go on as they come; who hangs up no longer waits, and is no longer generated for.
    option http-no-delay
    option abortonclose
    # vLLM hangs up on connections that idle when a request may be on its way: none is used twice. Clients
    # keep theirs, also over a reload: until their next answer, which comes by way of `again`.
    option http-server-close
    option idle-close-on-response
    timeout http-keep-alive {idle}s
    # Only what no replica has seen yet is sent to another, or what one refused at once.
    retries 3
    option redispatch 1
    retry-on conn-failure 503
    timeout connect 3s
    timeout http-request 30s
    timeout queue 1m
    # An answer may take minutes, and its first byte too.
    timeout client 1h
    timeout server 1h
    timeout check 5s
    http-error status 503 content-type application/json string '{{"error": {{"message": "no replica is free; \
try again", "type": "overloaded_error", "code": 503}}}}' hdr Retry-After 5
    http-error status 502 content-type application/json string '{{"error": {{"message": "the replica ended \
before it answered; try again", "type": "server_error", "code": 502}}}}'
"""

_FRONTEND = """
frontend openai
    bind :{port}
    monitor-uri /health
    monitor fail if{down}
    # Its successor's to judge: see `again`.
    http-request allow if {{ stopping }}
    # vLLM's key guards no more than this, and so no more is let through.
    http-request deny deny_status 404 unless {{ path_beg /v1/ }}
"""

# Who asks a HAProxy that a reload has ended, on a connection that was kept, is handed on to the new one: only
# that hears of drains, and knows of new models.
_HANDED_ON = "    use_backend again if { stopping }\n"

# The list asks for no key, which the gateway does not know.
_BY_MODEL = """\
    http-request return status 200 content-type application/json string {listed} if {{ path /v1/models }}
    http-request set-var(txn.model) req.hdr({header}) if {{ req.hdr({header}) -m found }}
    http-request set-var(txn.model) path,url_dec,regsub(^/v1/models/,) if {{ path_beg /v1/models/ }}
    http-request wait-for-body time 1m unless {{ var(txn.model) -m found }}
    http-request set-var(txn.model) req.body,json_query('$.model') unless {{ var(txn.model) -m found }}
    http-request return status 404 content-type application/json string {unknown} \
unless {{ var(txn.model) -m str -- {every} }}
{uses}"""

_BACKEND = """
backend {name}
    balance leastconn
    stick-table type string len 128 size 100k expire 30m
    stick on req.hdr({session})
    option httpchk GET /health
    http-check expect status 200
    # A node that is gone answers no keep-alive: its requests fail after 25 s, not after an hour.
    option srvtcpka
    srvtcpka-idle 10s
    srvtcpka-intvl 5s
    srvtcpka-cnt 3
    load-server-state-from-file global
    default-server check inter 2s fastinter 500ms fall 3 rise 1 agent-check agent-inter 2s
{servers}"""

_AGAIN = """
backend again
    retry-on conn-failure
    server next 127.0.0.1:{port}
"""

_STATISTICS = """
frontend statistics
    bind 127.0.0.1:{statistics}
    stats enable
    stats uri /
"""

"""HAProxy's configuration for the replicas of a model. Pure; for HAProxy 2.4 and later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BACKEND = "replicas"

#: Its port, on loopback.
STATISTICS = 8404

#: Requests of one conversation find the replica that has its prefix in its KV cache.
SESSION = "x-session-id"


@dataclass(frozen=True)
class Server:
    """A replica, as the gateway sees it: its API, who says whether it generates, what it runs at once."""

    name: str
    address: str
    port: int
    health_port: int
    requests: int


def render(servers: Sequence[Server], port: int, run: str) -> str:
    """The whole file; `run` is the folder of the socket and of the servers' state."""
    lines = (
        f"    server {one.name} {one.address}:{one.port} agent-port {one.health_port}"
        f" maxconn {one.requests}\n"
        for one in servers
    )
    return _FILE.format(
        run=run, port=port, statistics=STATISTICS, session=SESSION, backend=BACKEND, servers="".join(lines)
    )


# Why not ...
# on-marked-down shutdown-sessions: a health check that is late would cut answers that are well. A node
#   that is gone is found by keep-alive, a process that is gone by its connection.
# retry-on all-retryable-errors: a replica that dies of a request would take the others along.
_FILE = """\
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

defaults
    mode http
    log global
    option httplog
    option dontlognull
    # Tokens go on as they come; who hangs up no longer waits, and is no longer generated for.
    option http-no-delay
    option abortonclose
    # vLLM hangs up on connections that idle when a request may be on its way: none is used twice.
    option http-server-close
    # Only what no replica has seen yet is sent to another, or what one refused at once.
    retries 3
    option redispatch 1
    retry-on conn-failure 503
    timeout connect 3s
    timeout http-request 30s
    timeout http-keep-alive 1m
    timeout queue 1m
    # An answer may take minutes, and its first byte too.
    timeout client 1h
    timeout server 1h
    timeout check 5s
    http-error status 503 content-type application/json string '{{"error": {{"message": "no replica is free; \
try again", "type": "overloaded_error", "code": 503}}}}' hdr Retry-After 5
    http-error status 502 content-type application/json string '{{"error": {{"message": "the replica ended \
before it answered; try again", "type": "server_error", "code": 502}}}}'

frontend openai
    bind :{port}
    monitor-uri /health
    monitor fail if {{ nbsrv({backend}) lt 1 }}
    # vLLM's key guards no more than this, and so no more is let through.
    http-request deny deny_status 404 unless {{ path_beg /v1/ }}
    default_backend {backend}

backend {backend}
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
{servers}
frontend statistics
    bind 127.0.0.1:{statistics}
    stats enable
    stats uri /
"""

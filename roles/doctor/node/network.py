"""Runs on a node, for look.py: its name, its address, who listens, whom it reaches."""

import glob
import os
import select
import socket
import struct
import time
from contextlib import suppress

from reading import cgroup, read

REPLY = 0.5  # seconds to wait for echoes


def names(_):
    """This host's name and the addresses that it has for it."""
    own = socket.gethostname()
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(own, None, socket.AF_INET)}
    except OSError:
        found = set()
    return {"name": own, "addresses": sorted(found)}


def interface(asked, addresses):
    """The interface that has this host's address, and what its card has counted."""
    for link in addresses:
        for one in link.get("addr_info", ()):
            if one.get("local") == asked["address"]:
                card = f"/sys/class/net/{link['ifname']}"
                counted = ("rx_packets", "rx_errors", "rx_dropped", "tx_errors")
                return {
                    "name": link["ifname"], "mtu": link["mtu"], "prefix": one["prefixlen"],
                    "up": "LOWER_UP" in link.get("flags", ()), "speed": read(f"{card}/speed"),
                    **{key: int(read(f"{card}/statistics/{key}") or 0) for key in counted},
                }  # fmt: skip
    return None


def listeners(asked):
    """Who listens on the ports that the plan wants."""
    wanted = [range(low, high + 1) for low, high in asked.get("ports", ())]
    sockets = {}
    for line in f"{read('/proc/net/tcp')}\n{read('/proc/net/tcp6')}".splitlines():
        words = line.split()
        if len(words) > 9 and words[3] == "0A":
            port = int(words[1].rsplit(":", 1)[1], 16)
            if any(port in ports for ports in wanted):
                sockets[f"socket:[{words[9]}]"] = port
    rows = []
    for fd in glob.glob("/proc/[0-9]*/fd/*") if sockets else ():
        try:
            port = sockets.get(os.readlink(fd))
        except OSError:
            continue
        if port:
            pid = fd.split("/")[2]
            rows.append([port, int(pid), (read(f"/proc/{pid}/comm") or "?").strip(), cgroup(pid)])
    return sorted(rows)


def echoes(asked, mtu):
    """{address: [answers a small packet, answers one of full size that may not be cut up]}."""
    peers = asked.get("peers") or []
    if not peers or not mtu:
        return {}
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
    own, sent, answers = os.getpid() & 0xFFFF, {}, {peer: [False, False] for peer in peers}
    for peer in peers:
        for full, size in enumerate((56, mtu - 28)):
            number = len(sent)
            sent[number] = (peer, full)
            send(sock, peer, own, number, b"\0" * size)
    until = time.monotonic() + REPLY
    while not all(all(pair) for pair in answers.values()) and time.monotonic() < until:
        if select.select([sock], [], [], max(0, until - time.monotonic()))[0]:
            packet = sock.recv(65535)
            kind, _, _, whose, number = struct.unpack_from("!BBHHH", packet, (packet[0] & 15) * 4)
            if kind == 0 and whose == own and number in sent:
                peer, full = sent[number]
                answers[peer][full] = True
    return answers


def send(sock, peer, own, number, payload):
    unsummed = struct.pack("!BBHHH", 8, 0, 0, own, number) + payload
    words = struct.unpack(f"!{len(unsummed) // 2}H", unsummed[: len(unsummed) // 2 * 2])
    total = sum(words) + (unsummed[-1] << 8 if len(unsummed) % 2 else 0)
    total = (total & 0xFFFF) + (total >> 16)
    packed = struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, own, number)
    with suppress(OSError):  # no answer will come
        sock.sendto(packed + payload, (peer, 0))

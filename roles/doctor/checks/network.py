"""The network between the nodes: addresses, ports, packets of full size."""

from __future__ import annotations

from ..check import Host, Unclear, Verdict, check, failed, passed, warned

#: Where our fixed ports end (models.plan.Ports).
EPHEMERAL = 32768


@check(
    "net.address",
    "The inventory's address is on an interface that is up",
    looks_at="ip address",
    fix="correct `address` or `interface` of {host} in the inventory, or: sudo ip link set {interface} up",
    reference="vllm#13388",
)
def address(host: Host) -> Verdict | None:
    if not host.get("ip"):
        raise Unclear("ip address said nothing")
    net, wanted = (host.seen or {}).get("net"), host.expected
    if net is None:
        return failed(f"no interface has {wanted.address}")
    if wanted.interface and wanted.interface != net["name"]:
        return failed(f"{wanted.address} is on {net['name']}, not on {wanted.interface}")
    if not net["up"]:
        return failed(f"{net['name']} is down")
    return passed(f"{wanted.address} on {net['name']}")


@check(
    "net.path",
    "Packets of full size reach the other nodes uncut",
    looks_at="an echo request as large as the MTU, not to be fragmented, to the next hosts",
    fix="sudo ip link set {interface} mtu N, the same on every node and switch on the way",
    reference="nccl#1524",
)
def path(host: Host) -> Verdict | None:
    echoes = host.get("peers")
    names = {address: name for name, address in host.expected.peers.items()}
    silent = sorted(names.get(peer, peer) for peer, (small, _) in echoes.items() if not small)
    cut = sorted(names.get(peer, peer) for peer, (small, full) in echoes.items() if small and not full)
    mtu = (host.seen or {}).get("net", {}).get("mtu")
    if cut:
        return failed(f"packets of {mtu} bytes do not reach {', '.join(cut)}; small ones do")
    if silent and len(silent) < len(echoes):
        return failed(f"no answer from {', '.join(silent)}", f"ping {echoes and silent[0]} from {host.name}")
    if silent:
        return warned(f"no answer from {', '.join(silent)}: cut off, or echo requests are forbidden")
    return passed(f"{mtu} bytes to {', '.join(names.get(peer, peer) for peer in echoes)}") if echoes else None


@check(
    "net.errors",
    "The interface receives without errors",
    looks_at="/sys/class/net/*/statistics",
    fix="ethtool -S {interface} | grep -i err; change the cable or the transceiver",
    reference="srt-slurm#243",
)
def errors(host: Host) -> Verdict | None:
    net = host.get("net")
    wrong = net["rx_errors"] + net["tx_errors"]
    share = wrong / max(net["rx_packets"], 1)
    said = f"{wrong} errors in {net['rx_packets']} packets on {net['name']}"
    return warned(said) if wrong > 100 and share > 1e-5 else passed(said)


@check(
    "ports.taken",
    "The plan's ports are free, or ours",
    looks_at="/proc/net/tcp, the plan",
    fix="sudo ss -ltnp on {host}; end that process, or choose another `port`",
    reference="vllm#28498",
)
def ports(host: Host) -> Verdict | None:
    if not host.expected.ports:
        return None
    others = [row for row in host.get("listeners") if "/rackserve-" not in row[3]]
    if others:
        said = ", ".join(f"{port} by {name} (pid {pid})" for port, pid, name, _ in others[:3])
        return failed(f"taken: {said}")
    wanted = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in host.expected.ports)
    return passed(f"{wanted} are free or ours")


@check(
    "ports.range",
    "No outgoing connection takes our ports by chance",
    looks_at="/proc/sys/net/ipv4/ip_local_port_range",
    fix="sudo sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
    reference="vllm#39015",
)
def port_range(host: Host) -> Verdict | None:
    low, high = host.get("port_range").split()
    said = f"{low} to {high}"
    return passed(said) if int(low) >= EPHEMERAL else warned(f"{said}: it has Ray's, 20000 to 32767, in it")

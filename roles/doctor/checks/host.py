"""The host itself: there, known, with a name and a time that others agree with."""

from __future__ import annotations

from ipaddress import ip_address

from ..check import Host, Unclear, Verdict, check, failed, passed, warned
from ..parse import properties, setting

#: What the playbooks were run on, and what they are written for (docs/doctor.md).
TRIED = {("debian", "12"), ("ubuntu", "22.04"), ("ubuntu", "24.04")}


@check(
    "host.reach",
    "The host answers, and root may look",
    looks_at="SSH, sudo, python3, systemd",
    fix="ssh {host} sudo -n true",
    reference="ray-project/ray#20166",
)
def reach(host: Host) -> Verdict | None:
    return failed(host.lacks) if host.seen is None else passed("it answered")


@check(
    "host.system",
    "A distribution that is known",
    looks_at="/etc/os-release",
    fix="install Debian 12, Ubuntu 22.04 or Ubuntu 24.04",
    reference="docs/doctor.md",
)
def system(host: Host) -> Verdict | None:
    text = host.get("os")
    name = setting(text, "PRETTY_NAME")
    known = (setting(text, "ID"), setting(text, "VERSION_ID")) in TRIED
    return passed(name) if known else warned(f"{name}: nobody has tried it yet")


@check(
    "host.name",
    "The host's name means its own address, not loopback",
    looks_at="what the host's name resolves to on the host",
    fix="sudo sed -i 's/^127\\.0\\.1\\.1\\s.*/{address} {hostname}/' /etc/hosts",
    reference="vllm#7074",
)
def name(host: Host) -> Verdict | None:
    own = host.get("host")
    if not host.expected.peers:
        return passed(f"{own['name']}; it is alone")
    if not own["addresses"]:
        return failed(f"{own['name']} resolves to nothing", f"echo {host.expected.address} {own['name']} >> "
                      "/etc/hosts, as root")  # fmt: skip
    said = f"{own['name']} resolves to {', '.join(own['addresses'])}"
    if any(ip_address(address).is_loopback for address in own["addresses"]):
        return failed(said)
    if own["name"].isdigit():  # gpustack#4128: Gloo takes it for an address
        return failed(f"{own['name']} is all digits", "sudo hostnamectl hostname NAME")
    return passed(said)


@check(
    "host.clock",
    "The clock is kept by a time server",
    looks_at="adjtimex(2)",
    fix="sudo apt-get install -y chrony",
    reference="canonical/lxd#7321",
)
def clock(host: Host) -> Verdict | None:
    if host.get("synchronized"):
        return passed("synchronized")
    return warned("the kernel says that nothing keeps it")


@check(
    "host.firewall",
    "No firewall between the nodes",
    looks_at="ufw and /etc/ufw/ufw.conf, firewalld",
    fix="sudo ufw allow from ADDRESSES-OF-THE-NODES",
    reference="vllm#39015",
)
def firewall(host: Host) -> Verdict | None:
    services = properties(host.get("services"))
    if not services:
        raise Unclear("systemctl said nothing")
    on = [name for name in ("ufw", "firewalld") if services.get(name, {}).get("ActiveState") == "active"]
    # Ubuntu starts ufw's unit at every boot; whether it then does anything, its configuration says.
    if "ufw" in on and setting(host.get("ufw"), "ENABLED").lower() != "yes":
        on.remove("ufw")
    if on and host.expected.peers:
        return warned(f"{on[0]} runs: Ray, NCCL and vLLM use ports above 20000 in both directions")
    return passed("neither ufw nor firewalld is on")


@check(
    "host.reboot",
    "No reboot is due for a kernel or driver",
    looks_at="/run/reboot-required.pkgs",
    fix="reboot {host} while it serves nothing",
    reference="ubuntu-packaging-nvidia-driver#3",
)
def reboot(host: Host) -> Verdict | None:
    due = ((host.seen or {}).get("reboot") or "").split()
    weighty = sorted({name for name in due if name.startswith(("linux-", "nvidia", "libnvidia"))})
    return warned(f"due for {', '.join(weighty[:4])}") if weighty else passed("none is due")

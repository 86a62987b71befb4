"""What a node has of a fabric."""

from __future__ import annotations

import shlex

from pyinfra.api import FactBase

from .choice import CONF, Device, Port, Seen

#: As NCCL looks for it (src/transport/net_ib/gdr.cc).
_LOADED = "ls -d /sys/module/nvidia_peermem /sys/kernel/mm/memory_peers/nv_mem* 2>/dev/null | grep -q ."

# One row a line, `key|value|...`. The files: the kernel's Documentation/ABI/stable/sysfs-class-infiniband,
# and for GIDs testing/sysfs-class-infiniband; of a GID that is not there the type cannot be read.
_LOOK = rf"""
of() {{ v=; read -r v <"$1"; }}
for d in /sys/class/infiniband/*; do
  of "$d/node_type"; node=$v
  of "$d/device/numa_node"; numa=$v
  for p in "$d"/ports/*; do
    test -e "$p/state" || continue
    of "$p/state"; state=$v
    of "$p/link_layer"; link=$v
    of "$p/rate"; rate=$v
    gids=
    for g in "$p"/gids/*; do
      test "$link" = Ethernet || break
      of "$g"
      case $v in 0000:0000:0000:0000:0000:ffff:*) of "$p/gid_attrs/types/${{g##*/}}" ;; esac
      test "$v" = "RoCE v2" && gids="$gids ${{g##*/}}"
    done
    net=$(ls "$d/device/net" | tr '\n' ' ')
    at=$(readlink -f "$d/device")
    echo "port|${{d##*/}}|${{p##*/}}|$state|$link|$rate|$node|$at|$numa|$net|$gids"
  done
done 2>/dev/null
for d in /sys/bus/pci/devices/*; do
  of "$d/vendor"; test "$v" = 0x10de || continue
  of "$d/class"; case $v in 0x0300*|0x0302*) of "$d/numa_node"; echo "gpu|$(readlink -f "$d")|$v" ;; esac
done 2>/dev/null
sed 's/^/conf|/' {CONF} 2>/dev/null
echo "kernel|$(uname -r)"
echo "driver|$(head -n 1 /proc/driver/nvidia/version 2>/dev/null)"
if {_LOADED}; then
  echo "peermem|loaded"
elif modinfo nvidia_peermem >/dev/null 2>&1 &&
  grep -qs ' ib_register_peer_memory_client' /proc/kallsyms; then
  echo "peermem|loadable"
fi
"""


class Look(FactBase["Seen | None"]):
    """All of it, in one round; None when the host could not be asked."""

    def command(self, address: str) -> str:
        where = f"ip -oneline address show to {shlex.quote(address)} | sed 's/^/interface|/'"
        return f"{_LOOK.strip()}\n{where}\necho fabric"

    def process(self, output: list[str]) -> Seen | None:
        if "fabric" not in output:
            return None
        rows = [line.split("|") for line in output]
        words = {row[0]: row[1] for row in rows if len(row) == 2}
        return Seen(
            # 2: host0    inet 10.0.0.11/24 brd ...
            interface=(words.get("interface", "").split() or ["", ""])[1],
            ports=tuple(_port(*row[1:]) for row in rows if row[0] == "port"),
            gpus=tuple(_device(*row[1:]) for row in rows if row[0] == "gpu"),
            conf="".join(f"{line[5:]}\n" for line in output if line.startswith("conf|")),
            kernel=words.get("kernel", ""),
            driver=words.get("driver", ""),
            peermem=words.get("peermem", ""),
        )

    @staticmethod
    def default() -> None:
        return None


class Loaded(FactBase[bool]):
    """nvidia_peermem is loaded, or what it was before."""

    def command(self) -> str:
        return f"{_LOADED} && echo yes || true"

    def process(self, output: list[str]) -> bool:
        return "yes" in output

    @staticmethod
    def default() -> bool:
        return False


def _port(
    hca: str, number: str, state: str, link: str, rate: str, node: str, path: str, numa: str,
    net: str, gids: str,
) -> Port:  # fmt: skip
    interfaces, indexes = tuple(net.split()), tuple(map(int, gids.split()))
    return Port(hca, int(number), state, link, rate, node, _device(path, numa), interfaces, indexes)


def _device(path: str, numa: str) -> Device:
    return Device(path, int(numa or -1))

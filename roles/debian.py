"""How Debian and Ubuntu are asked for packages, beside other programs that ask: commands, as text. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

WAIT = 600  # seconds for another apt, as that of unattended-upgrades

# needrestart would restart what uses a library that was replaced: on a node that serves, a replica.
APT = (
    f"NEEDRESTART_MODE=l DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout={WAIT}"
    " -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
)

# apt-get has a timeout for dpkg's lock only, not for those of its lists and of what it fetches; dpkg itself
# has none.
_PATIENTLY = f"""\
export LC_ALL=C
until=$(($(date +%s) + {WAIT}))
while :; do
  said=$( {{}} 2>&1) && exit
  case $said in *' get lock '*|*' locked by another '*) ;; *) break ;; esac
  test "$(date +%s)" -lt $until || break
  sleep 20
done
echo "$said" >&2
exit 1"""


# The variable's first 4 bytes are attributes (the kernel's Documentation/filesystems/efivarfs.rst).
_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

#: Says `interrupted` where dpkg was cut off.
INTERRUPTED = """\
test -z "$(dpkg --audit 2>/dev/null)" -a -z "$(ls /var/lib/dpkg/updates 2>/dev/null)" || echo interrupted
""".strip()

#: In a shell: `sources PATTERN` says which of apt's files have that in an entry that apt reads, as awk has
#: patterns. What is commented out it does not read, nor what is not `Enabled`, nor *.save or *.distUpgrade.
SOURCES = r"""
sources() {
  for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    awk -v RS= -v it="(^|\n)$1" '
      $0 ~ it && tolower($0) !~ /(^|\n)enabled:[ \t]*(no|false|off|0)/ { found = 1 }
      END { exit !found }' "$f" 2>/dev/null && echo "$f"
  done
}
""".strip()

#: What facts about packages ask of a host, a row a line: os, machine, kernel, secure (1: Secure Boot is on),
#: and `interrupted` where dpkg was cut off.
LOOK = rf"""
(. /etc/os-release; echo os "$ID $VERSION_ID")
echo machine "$(uname -m)"
echo kernel "$(uname -r)"
echo secure "$(od -An -t u1 -j 4 -N 1 {_SECURE_BOOT} 2>/dev/null)"
{INTERRUPTED}
""".strip()


def patiently(command: str) -> str:
    """A command that somebody else's lock keeps from working only for a while."""
    return f"sh -c {shlex.quote(_PATIENTLY.format(command))}"


def repaired() -> str:
    """Finish what a cut connection left; nobody is there to be asked about a file that was changed."""
    options = "--force-confdef --force-confold"
    return patiently(f"DEBIAN_FRONTEND=noninteractive dpkg {options} --configure -a")


def refreshed() -> str:
    """apt knows what there is."""
    return patiently("apt-get -q update")


def installed(names: Sequence[str]) -> str:
    """Install packages, in whatever versions there are."""
    return patiently(f"{APT} install --no-install-recommends {shlex.join(names)}")


def key(url: str, path: str, fingerprint: str) -> str:
    """Fetch a repository's key; one whose fingerprint does not end so is not kept."""
    got = f"{path}.new"
    return " && ".join(
        (
            f"{{ command -v gpg >/dev/null || {installed(['gpg'])}; }}",
            f"/usr/lib/apt/apt-helper download-file {url} {got}",
            f"gpg --show-keys --with-colons {got} | grep -q '^fpr:.*{fingerprint}:$'",
            f"chmod 644 {got}",
            f"mv {got} {path}",
        )
    )

"""systemd units, secret files, kernel settings and leftovers: facts, and what follows from them."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from roles import debian, files, replicas, units
from roles.base.boot import drop_in
from roles.base.facts import Essentials, Installed, Interrupted, KernelSettings, RebootDue, UserId
from roles.base.operations import kernel_settings, system_packages, system_user
from roles.files import SecretFile, secret
from roles.replicas import ReplicaFolders
from roles.units.facts import InstalledUnits, Unit, UnitState
from roles.weights.facts import Room
from tests.lab.drivers import Apt, Empty, Repository

# systemctl show NAME --timestamp=us+utc --property=... and stat, on Debian 12.
RUNNING = """\
ExecMainStartTimestamp=Mon 2026-11-23 01:02:03.456789 UTC
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
""".splitlines()
NEVER_STARTED = """\
ExecMainStartTimestamp=
ActiveState=inactive
UnitFileState=
NeedDaemonReload=no
""".splitlines()
STARTED = 1795395723  # Mon 2026-11-23 01:02:03 UTC


def test_a_running_unit_is_read():
    assert Unit().process(RUNNING) == UnitState(active=True, enabled=True)


def test_a_unit_that_systemd_does_not_know_is_neither_active_nor_enabled():
    assert Unit().process(NEVER_STARTED) == UnitState()


def test_a_start_that_some_systemd_write_as_not_available_is_no_start():
    lines = ["ExecMainStartTimestamp=n/a", *NEVER_STARTED[1:], f"{STARTED}.5 /etc/x"]
    assert Unit().process(lines) == UnitState(stale=("/etc/x",))


def test_a_unit_that_loads_its_configuration_anew_is_not_restarted_for_it():
    lines = [line.replace("ActiveState=active", "ActiveState=reloading") for line in RUNNING]
    assert Unit().process(lines).active


@pytest.mark.parametrize("state", ["activating", "failed", "inactive", "deactivating"])
def test_a_unit_between_states_is_not_active(state):
    lines = [line.replace("ActiveState=active", f"ActiveState={state}") for line in RUNNING]
    assert not Unit().process(lines).active


def test_a_unit_file_that_changed_on_disk_needs_a_reload():
    lines = [line.replace("NeedDaemonReload=no", "NeedDaemonReload=yes") for line in RUNNING]
    assert Unit().process(lines).needs_reload


@pytest.mark.parametrize(
    ("written", "stale"),
    [
        (f"{STARTED - 1}.9999999990", False),
        (f"{STARTED}.0000000000", False),
        (f"{STARTED}.4567880000", False),  # a microsecond before the start
        (f"{STARTED}.4567900000", True),  # a microsecond after it
        (f"{STARTED + 1}.0000000000", True),
    ],
)
def test_a_file_is_stale_when_it_was_written_after_the_start_to_the_fraction(written, stale):
    seen = Unit().process([*RUNNING, f"{written} /etc/rackserve/replica-0/vllm.yaml"])
    assert seen.stale == (("/etc/rackserve/replica-0/vllm.yaml",) if stale else ())


def test_every_stale_file_is_named_even_with_blanks_in_its_name():
    lines = [*RUNNING, f"{STARTED + 5}.0 /a b", f"{STARTED - 5}.0 /old", f"{STARTED + 9}.0 /c"]
    assert Unit().process(lines).stale == ("/a b", "/c")


def test_the_times_that_are_asked_for_have_fractions_and_are_the_links_own(tmp_path):
    target, link = tmp_path / "target", tmp_path / "a link"
    target.touch()
    link.symlink_to(target)
    os.utime(target, ns=(0, 5_250_000_000))
    os.utime(link, ns=(0, 7_750_000_000), follow_symlinks=False)
    files = (str(target), str(link), str(tmp_path / "absent"))
    stat = Unit().command(unit="x.service", files=files).split("; ", 1)[1]
    lines = subprocess.run(stat, shell=True, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [str(target), str(link)]
    assert [float(line.split(" ")[0]) for line in lines] == [5.25, 7.75]


def test_a_unit_without_files_is_only_shown():
    assert Unit().command(unit="x.service") == (
        "systemctl show x.service --timestamp=us+utc "
        "--property=ActiveState,UnitFileState,NeedDaemonReload,ExecMainStartTimestamp"
    )


WELL = UnitState(active=True, enabled=True)
CHANGES, STAYS = SimpleNamespace(will_change=True), SimpleNamespace(will_change=False)


def running(on_host, state, changed=(), executing=False):
    host = on_host({Unit: state}, executing)
    return host, host.commands(units.running, unit="a.service", reads=["/etc/a.yaml"], changed=changed)


def test_a_unit_that_runs_with_what_is_on_disk_is_left_alone(on_host):
    host, commands = running(on_host, WELL, changed=[STAYS])
    assert commands == []
    assert host.noop_description == "a.service is running with the configuration on disk"


def test_a_new_unit_is_enabled_and_started(on_host):
    _, commands = running(on_host, UnitState())
    assert commands == ["systemctl reenable --quiet a.service", "systemctl restart a.service"]


def test_a_unit_older_than_its_configuration_is_restarted_and_says_why(on_host):
    host, commands = running(on_host, UnitState(active=True, enabled=True, stale=("/etc/a.yaml",)))
    assert commands == ["systemctl restart a.service"]
    assert host.said == ["a.service restarts: /etc/a.yaml is newer than its start"]


def test_a_unit_whose_file_changed_is_reloaded_before_it_is_restarted(on_host):
    stale = ("/etc/systemd/system/a.service",)
    _, commands = running(on_host, UnitState(active=True, enabled=True, needs_reload=True, stale=stale))
    assert commands == [
        "systemctl daemon-reload",
        "systemctl reenable --quiet a.service",
        "systemctl restart a.service",
    ]


def test_a_unit_that_is_down_or_dying_is_started_again(on_host):
    _, commands = running(on_host, UnitState(active=False, enabled=True))
    assert commands == ["systemctl restart a.service"]


def test_a_plan_foretells_the_restart_that_a_changed_file_will_need(on_host):
    _, commands = running(on_host, WELL, changed=[STAYS, CHANGES])
    assert commands == ["systemctl daemon-reload", "systemctl restart a.service"]


def test_while_executing_only_what_is_on_the_host_counts(on_host):
    _, commands = running(on_host, WELL, changed=[CHANGES], executing=True)
    assert commands == []


def test_a_unit_only_to_be_enabled_is_not_restarted(on_host):
    _, commands = running(on_host, UnitState(active=True))
    assert commands == ["systemctl reenable --quiet a.service"]


def test_units_of_replicas_that_are_not_kept_are_stopped_and_removed(on_host):
    names = [f"rackserve-replica-{n}-vllm.service" for n in (0, 1, 10)]
    host = on_host({InstalledUnits: lambda pattern: {"r-*": names}[pattern]})
    assert host.commands(units.only, pattern="r-*", keep=["replica-1"]) == [
        f"systemctl disable --quiet --now {names[0]} {names[2]}",
        f"rm -f /etc/systemd/system/{names[0]} /etc/systemd/system/{names[2]}",
        "systemctl daemon-reload",
        f"systemctl reset-failed {names[0]} {names[2]} 2>/dev/null || true",
    ]


def test_units_of_replicas_that_are_all_kept_are_left_alone(on_host):
    host = on_host({InstalledUnits: ["rackserve-replica-0-ray.service"]})
    assert host.commands(units.only, pattern="r-*", keep=["replica-0", "replica-1"]) == []
    assert host.noop_description == "no unit r-* to remove"


def test_installed_units_are_known_by_name():
    found = InstalledUnits().process(["/etc/systemd/system/b.service", "/etc/systemd/system/a.service"])
    assert found == ["a.service", "b.service"]


def test_replicas_that_are_not_kept_lose_their_folders(on_host):
    found = ["/etc/rackserve/replica-0", "/etc/rackserve/replica-1", "/var/lib/rackserve/ray-replica-1"]
    host = on_host({ReplicaFolders: found})
    assert host.commands(replicas.only, keep=["replica-0"]) == [f"rm -rf {found[1]} {found[2]}"]
    assert host.commands(replicas.only, keep=["replica-0", "replica-1"]) == []


def test_a_replica_is_not_kept_for_another_whose_name_begins_alike(on_host):
    host = on_host({ReplicaFolders: ["/etc/rackserve/replica-1", "/etc/rackserve/replica-10"]})
    assert host.commands(replicas.only, keep=["replica-1"]) == ["rm -rf /etc/rackserve/replica-10"]


OWNER = f"{os.getuid()}:{os.getgid()}"


def test_a_secret_that_is_as_wanted_is_left_alone(on_host):
    digest = hashlib.sha256(b"key\n").hexdigest()
    host = on_host({SecretFile: (digest, "root:root", "600")})
    assert host.commands(secret, path="/etc/key", content="key\n") == []


@pytest.mark.parametrize(
    "seen",
    [
        ("", "", ""),
        (hashlib.sha256(b"old\n").hexdigest(), "root:root", "600"),
        (hashlib.sha256(b"key\n").hexdigest(), "rackserve:root", "600"),
        (hashlib.sha256(b"key\n").hexdigest(), "root:root", "644"),
    ],
)
def test_a_secret_of_other_content_owner_or_mode_is_written(on_host, seen):
    (command,) = on_host({SecretFile: seen}).yielded(secret, path="/etc/key", content="key\n")
    assert command.connector_arguments == {"_stdin": "key\n"}
    assert "key\n" not in command.get_raw_value(), "the content is no argument: it would show in ps"


def written(path, content, mode="600"):
    """Write a secret with the command itself, on this machine."""
    (command,) = files.write_secret(str(path), content, OWNER, mode)
    shell = ["sh", "-c", command.get_raw_value()]
    return subprocess.run(shell, input=content, text=True, capture_output=True)


def test_the_command_writes_content_and_mode_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new folder" / "it's a key"
    assert written(path, "a\nb $HOME\n", "440").returncode == 0
    assert path.read_text() == "a\nb $HOME\n"
    assert path.stat().st_mode & 0o777 == 0o440
    assert list(path.parent.iterdir()) == [path]


def test_a_secret_is_replaced_whole(tmp_path):
    path = tmp_path / "key"
    path.write_text("old")
    before = path.stat().st_ino
    written(path, "new\n")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new\n", 0o600)
    assert path.stat().st_ino != before, "renamed into place, not written over"


def test_the_fact_reads_back_what_the_command_wrote(tmp_path):
    path = tmp_path / "it's a key"
    written(path, "new\n", "640")
    read = subprocess.run(SecretFile().command(str(path)), shell=True, capture_output=True, text=True)
    digest, owner, mode = SecretFile().process(read.stdout.splitlines())
    assert (digest, mode) == (hashlib.sha256(b"new\n").hexdigest(), "640")
    assert ":" in owner


def test_the_fact_of_an_absent_file_is_empty_and_no_failure(tmp_path):
    read = subprocess.run(
        SecretFile().command(str(tmp_path / "absent")), shell=True, capture_output=True, text=True
    )
    assert read.returncode == 0
    assert SecretFile().process(read.stdout.splitlines()) == ("", "", "")


WANTED = {"kernel.numa_balancing": "0", "net.core.somaxconn": "8192"}


def test_kernel_settings_that_differ_are_written_and_applied(on_host):
    now = {"kernel.numa_balancing": ("0", True), "net.core.somaxconn": ("4096", True)}
    host = on_host({KernelSettings: now})
    assert host.commands(kernel_settings, settings=WANTED) == ["sysctl -q -w net.core.somaxconn=8192"]


def test_kernel_settings_as_wanted_are_left_alone(on_host):
    now = {name: (value, True) for name, value in WANTED.items()}
    assert on_host({KernelSettings: now}).commands(kernel_settings, settings=WANTED) == []


def test_kernel_settings_that_cannot_be_written_here_are_reported(on_host):
    host = on_host({KernelSettings: {"net.core.somaxconn": ("4096", False)}})
    assert host.commands(kernel_settings, settings=WANTED) == []
    assert host.said == [
        "kernel.numa_balancing is absent, not 0, and cannot be written on this host",
        "net.core.somaxconn is 4096, not 8192, and cannot be written on this host",
    ]


def test_kernel_settings_are_read_on_a_real_kernel():
    command = KernelSettings().command(settings=("kernel.ostype", "kernel.no_such_thing"))
    read = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    assert KernelSettings().process(read.stdout.splitlines()) == {"kernel.ostype": ("Linux", False)}


def test_a_user_that_exists_is_left_alone_and_another_is_made(on_host):
    assert on_host({UserId: "999"}).commands(system_user, user="r", home="/var/lib/r") == []
    assert on_host({UserId: ""}).commands(system_user, user="r", home="/var/lib/r") == [
        "useradd --system --user-group --create-home --home-dir /var/lib/r --shell /usr/sbin/nologin r"
    ]


def test_of_packages_those_that_are_installed_are_told():
    asked = ("bash", "no-such-package")
    read = subprocess.run(
        Installed().command(asked), shell=True, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    assert Installed().process(read.splitlines()) == ["bash"]


def test_packages_that_are_installed_are_left_alone(on_host):
    host = on_host({Installed: ["a", "b", "c"]})
    assert host.commands(system_packages, packages=("a", "b")) == []


def test_a_package_that_is_absent_is_asked_for_as_beside_an_apt_that_is_at_work(on_host):
    asked = [debian.refreshed(), debian.installed(["b"])]
    host = on_host({Installed: ["a"], Interrupted: False})
    assert host.commands(system_packages, packages=("a", "b")) == asked
    assert "NEEDRESTART_MODE=l DEBIAN_FRONTEND=noninteractive" in asked[1]
    cut_off = on_host({Installed: ["a"], Interrupted: True})
    assert cut_off.commands(system_packages, packages=("a", "b")) == [debian.repaired(), *asked]


@pytest.fixture
def system(tmp_path):
    """An apt of its own, that knows g and p."""
    repository = Repository(tmp_path / "debian")
    repository.add([Empty(name, version) for name in "gp" for version in ("1", "2")])
    made = Apt(tmp_path / "apt")
    made.knows("debian", repository, "copy")
    return made


def provided(system, on_host):
    """What is run so that g and p are installed, with that apt; each is run."""

    def asked(fact, *words):
        command = fact.command(*words).replace("/var/lib/dpkg", f"{system.folder}/dpkg")
        return fact.process(system.run(command).splitlines())

    facts = {Installed: lambda packages: asked(Installed(), packages),
             Interrupted: lambda: asked(Interrupted())}  # fmt: skip
    commands = on_host(facts, executing=True).commands(system_packages, packages=("g", "p"))
    for command in commands:
        system.run(command.replace("sleep 20", "sleep 0.2"))
    return commands


@pytest.mark.parametrize("lock", ["dpkg/lock-frontend", "state/lists/lock", "cache/archives/lock"])
def test_packages_wait_for_another_apt_whichever_lock_it_holds(system, on_host, lock):
    hold = f"import fcntl; f = open({str(system.folder / lock)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    program = f"{hold}; print(flush=True); import time; time.sleep(2)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        provided(system, on_host)
        assert other.poll() is not None, "it was waited for"
    assert system.installed == {"g": "ii 2", "p": "ii 2"}
    assert provided(system, on_host) == []


def test_a_dpkg_that_was_cut_off_is_finished_before_a_package_is_asked_for(system, on_host):
    system.run(f"cd {system.folder} && apt-get download g=1 && dpkg {shlex.join(system.dpkg_options)}"
               " --unpack g_1*.deb")  # fmt: skip
    stanza = next(
        its for its in (system.folder / "dpkg/status").read_text().split("\n\n") if "Package: g" in its
    )
    (system.folder / "dpkg/updates/0000").write_text(f"{stanza}\n")  # as dpkg leaves it that is killed
    with pytest.raises(RuntimeError, match="dpkg was interrupted"):
        system.run(debian.installed(["p"]))
    assert provided(system, on_host)[0] == debian.repaired()
    assert system.installed == {"g": "ii 2", "p": "ii 2"}
    assert provided(system, on_host) == []


def test_packages_on_hold_are_installed_and_nobody_is_asked_for_them(system, on_host):
    system.run("apt-get -y install g=1 p && apt-mark hold g")
    assert system.installed["g"] == "hi 1"
    assert provided(system, on_host) == []
    system.run("apt-get -y remove p")
    provided(system, on_host)
    assert system.installed == {"g": "hi 1", "p": "ii 2"}


def test_a_real_users_id_is_found_and_an_unknown_ones_is_empty():
    for user, uid in (("root", "0"), ("no-such-user", ""), ("o'brien", "")):
        read = subprocess.run(UserId().command(user), shell=True, check=True, capture_output=True, text=True)
        assert UserId().process(read.stdout.splitlines()) == uid


def test_what_a_host_lacks_is_said_in_words():
    assert Essentials().process(["python3", "sudo", "asked"]) == [
        "no python3 (install it)",
        "no sudo (install it)",
    ]
    assert Essentials().process(["asked"]) == []
    assert Essentials().process([]) is None


def test_a_host_with_nothing_lacks_everything_but_a_password():
    run = subprocess.run(
        ["/bin/bash", "-c", Essentials().command()],
        env={"PATH": "/nowhere"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    lacking = run.stdout.splitlines()
    assert {"python3", "apt"} <= set(lacking)


def reboot_due(root, installed):
    """Why to reboot a host with these files under /sys and /run, and that module on its disk."""
    tool = root / "bin/modinfo"
    tool.parent.mkdir(parents=True, exist_ok=True)
    tool.write_text(f"#!/bin/sh\necho {installed}\n")
    tool.chmod(0o755)
    command = RebootDue().command()
    for place in ("/sys/", "/run/", "/proc/", "/etc/", "/boot/"):
        command = command.replace(place, f"{root}{place}")
    path = f"{tool.parent}:{os.environ['PATH']}"
    read = subprocess.run(
        ["sh", "-c", command], env={"PATH": path}, check=True, capture_output=True, text=True
    )
    return RebootDue().process(read.stdout.splitlines())


def written_to(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_a_reboot_is_due_when_the_driver_on_disk_is_not_the_one_that_is_loaded(tmp_path):
    written_to(tmp_path / "sys/module/nvidia/version", "570.133.20\n")
    assert reboot_due(tmp_path, "570.133.20") == ""
    assert reboot_due(tmp_path, "580.95.05") == "driver 580.95.05 is installed, 570.133.20 is loaded"


def test_a_reboot_is_due_when_a_host_with_gpus_has_a_driver_and_none_is_loaded(tmp_path):
    assert reboot_due(tmp_path, "580.95.05") == "", "no GPU"
    written_to(tmp_path / "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    assert reboot_due(tmp_path, "") == "", "no driver"
    assert reboot_due(tmp_path, "580.95.05") == "driver 580.95.05 is installed, none is loaded"
    (tmp_path / "sys/module/nouveau").mkdir(parents=True)
    assert reboot_due(tmp_path, "580.95.05") == "driver 580.95.05 is installed, nouveau is loaded"


def test_a_reboot_is_due_when_packages_ask_for_it(tmp_path):
    written_to(tmp_path / "run/reboot-required", "")
    assert reboot_due(tmp_path, "") == "packages ask for it: they do not say which"
    written_to(tmp_path / "run/reboot-required.pkgs", "linux-image-amd64\nlinux-image-amd64\n")
    assert reboot_due(tmp_path, "") == "packages ask for it: linux-image-amd64"


def test_a_reboot_is_due_when_grub_would_tell_the_kernel_what_it_was_not_told(tmp_path):
    written_to(tmp_path / "proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet amd_iommu=pt\n")
    written_to(tmp_path / "boot/grub/grub.cfg", "\tlinux\t/vmlinuz root=/dev/sda1 iommu=pt quiet\n")
    assert reboot_due(tmp_path, "") == "", "GRUB is not told by us"
    written_to(tmp_path / "etc/default/grub.d/rackserve.cfg", drop_in("iommu=pt"))
    assert reboot_due(tmp_path, "") == "it is to boot with iommu=pt"
    written_to(tmp_path / "proc/stat", f"cpu 1 2 3\nbtime {time.time() + 60:.0f}\n")
    assert reboot_due(tmp_path, "") == "", "the last one did not bring it"
    written_to(tmp_path / "proc/stat", "btime 0\n")
    written_to(tmp_path / "proc/cmdline", "BOOT_IMAGE=/vmlinuz iommu=pt quiet\n")
    assert reboot_due(tmp_path, "") == ""
    written_to(tmp_path / "proc/cmdline", "quiet\n")
    written_to(tmp_path / "boot/grub/grub.cfg", "\tlinux\t/vmlinuz root=/dev/sda1 quiet\n")
    assert reboot_due(tmp_path, "") == "", "a reboot would not bring it"


def test_a_reboot_is_due_when_network_cards_have_another_module_since_the_host_booted(tmp_path):
    module, stat = tmp_path / "mlx5_core.ko", tmp_path / "proc/stat"
    module.touch()
    written_to(stat, "cpu 1 2 3\nbtime 0\n")
    assert reboot_due(tmp_path, module) == "", "no such card"
    for name in ("version", "srcversion"):
        written_to(tmp_path / "sys/module/mlx5_core" / name, "of the distribution\n")
    assert "another is loaded" in reboot_due(tmp_path, module)
    stat.write_text(f"btime {time.time() + 60:.0f}\n")
    assert reboot_due(tmp_path, module) == "", "the last one did not bring it"
    stat.write_text("btime 0\n")
    for name in ("version", "srcversion"):
        written_to(tmp_path / "sys/module/mlx5_core" / name, f"{module}\n")
    assert reboot_due(tmp_path, module) == ""


@pytest.mark.parametrize(("umask", "fit"), [("022", True), ("002", True), ("027", False), ("077", False)])
def test_a_host_whose_root_hides_what_it_installs_is_not_fit(umask, fit):
    command = f"umask {umask}; {Essentials().command()}"
    read = subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True, text=True)
    assert ("umask" not in read.stdout.splitlines()) == fit


def test_room_is_looked_for_without_making_anything(tmp_path):
    path = tmp_path / "not/there/main"
    read = subprocess.run(
        Room().command(str(path), "c0ffee"), shell=True, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    assert Room().process(read.splitlines()) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert list(tmp_path.iterdir()) == []
    (path.parent / ".partial-c0ffee").mkdir(parents=True)
    (path.parent / ".partial-c0ffee/shard").write_bytes(b"x" * 2**20)
    lines = subprocess.run(
        Room().command(str(path), "c0ffee"), shell=True, check=True, capture_output=True, text=True
    ).stdout.splitlines()  # fmt: skip
    assert Room().process(lines) - Room().process(lines[:1]) >= 2**20

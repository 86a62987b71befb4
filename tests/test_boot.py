"""What a kernel is told as its host boots: read, refused, written, and what a shell makes of it."""

import json
import subprocess
import time
from types import SimpleNamespace

import pytest

from roles.base.boot import MENU, Boot, Booted, cannot_boot, drop_in, menu
from tests.test_nvidia import LOOKED, provision

__all__ = ["provision"]  # a fixture

#: Of Debian 12's grub.cfg.
LINES = """\
menuentry 'Debian GNU/Linux' --class debian {
	linux	/boot/vmlinuz-6.1.0-31-amd64 root=UUID=1 ro iommu=pt quiet
	initrd	/boot/initrd.img-6.1.0-31-amd64
}
"""


def booted(now="quiet", menu="quiet", machine="x86_64", grub=True, since=False):
    return Booted(machine, grub, frozenset(now.split()), frozenset(menu.split()), since)


def read(root, *tools):
    """What the fact says of a host with these files, and with update-grub if it is among `tools`."""
    for tool in tools:
        (root / tool).write_text("#!/bin/sh\n")
        (root / tool).chmod(0o755)
    command = Boot().command()
    for place in ("/proc/", "/boot/"):
        command = command.replace(place, f"{root}{place}")
    script = f'PATH="{root}:$PATH"; {command}'
    said = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout
    return Boot().process(said.splitlines())


def test_how_a_host_boots_is_read(tmp_path):
    for name, text in (("proc/cmdline", "root=UUID=1 ro quiet\n"), (MENU[1:], LINES)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    seen = read(tmp_path, "update-grub")
    assert seen.grub and seen.parameter in PARAMETERS
    assert "iommu=pt" in seen.menu and "initrd" not in seen.menu
    assert seen.now == {"root=UUID=1", "ro", "quiet"}
    for moment, since in ((0, False), (time.time() + 60, True)):
        (tmp_path / "proc/stat").write_text(f"cpu 1 2 3\nbtime {moment:.0f}\n")
        assert read(tmp_path, "update-grub").since is since


PARAMETERS = ("iommu=pt", "iommu.passthrough=1")


def test_a_host_without_grub_is_known(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("quiet\n")
    assert read(tmp_path, "update-grub").grub is False, "no menu: something else boots it"


def test_a_host_that_did_not_answer_is_not_one_without_grub():
    assert Boot().process([]) is None


def test_what_cannot_be_told_is_refused_in_words():
    assert cannot_boot(booted()) == ""
    assert cannot_boot(booted(grub=False, now="quiet iommu=pt")) == "", "somebody told it already"
    assert cannot_boot(booted(grub=False)) == (
        "iommu is pt, and it is not GRUB that boots it (update-grub, /boot/grub/grub.cfg): put iommu=pt on"
        " its kernel's command line, and reboot it"
    )
    told = "quiet iommu=pt"
    assert cannot_boot(booted(menu=told)) == cannot_boot(booted(told, told, since=True)) == ""
    tried = cannot_boot(booted(menu=told, since=True))
    assert "it booted without iommu=pt, which /boot/grub/grub.cfg has" in tried
    assert "of riscv64 is told so; leave `iommu` out" in cannot_boot(booted(machine="riscv64"))
    assert booted(machine="aarch64").parameter == "iommu.passthrough=1"


def test_the_words_of_the_distribution_and_of_others_stay(tmp_path):
    """As update-grub reads it: /etc/default/grub, then what is in grub.d, in the shell."""
    default, ours = tmp_path / "grub", tmp_path / "rackserve.cfg"
    default.write_text('GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="console=ttyS0 rd.x=$y"\n')
    ours.write_text(drop_in("iommu=pt"))
    script = f'. {default}; . {ours}; echo "$GRUB_CMDLINE_LINUX_DEFAULT|$GRUB_CMDLINE_LINUX"'
    said = subprocess.run(["sh", "-euc", f"y=; {script}"], check=True, capture_output=True, text=True).stdout
    assert said == "quiet|console=ttyS0 rd.x= iommu=pt\n"


@pytest.mark.parametrize(
    ("seen", "changes", "ran"),
    [
        (booted(), True, ["update-grub"]),
        (booted(), False, ["update-grub"]),  # cut off after the file was written
        (booted(menu="quiet iommu=pt"), True, ["update-grub"]),
        (booted(menu="quiet iommu=pt"), False, []),
    ],
)
def test_grubs_menu_is_made_anew_when_it_does_not_say_so(on_host, seen, changes, ran):
    host = on_host({Boot: seen})
    changed = [SimpleNamespace(will_change=changes)]
    done = host.commands(menu, parameter="iommu=pt", changed=changed)
    assert ["update-grub" for command in done if "update-grub && " in command] == ran
    assert host.said == ["it runs without iommu=pt: rackserve rollout --reboot due reboots for it"]


def test_a_host_that_runs_with_it_is_left_alone(on_host):
    host = on_host({Boot: booted("iommu=pt", "iommu=pt")})
    assert host.commands(menu, parameter="iommu=pt") == [] and host.said == []


GRUB = ["machine x86_64", "now root=UUID=1 quiet", "grub", "menu /vmlinuz root=UUID=1 quiet", "booted"]
ELSE = ["machine x86_64", "now quiet", "booted"]


def answers(lines, **data):
    said = {"echo asked": ["os ubuntu 24.04", *LOOKED], "echo booted": lines}
    return [], {"fake_responses": said, "driver": False, **data}


def test_provision_tells_grub_where_the_inventory_says_so(provision):
    done = provision({"gpu1": answers(GRUB, iommu="pt"), "gpu2": answers(GRUB)})
    assert done.returncode == 0, done.stderr
    plan = {op["name"]: op["hosts_with_change"] for op in json.loads(done.stdout)["plan"]}
    for name in ("Pass the IOMMU through at boot", "Tell GRUB of it"):
        assert plan[f"Base | {name}"] == ["@fake/gpu1"]


def test_hosts_that_something_else_boots_are_refused_all_at_once(provision):
    hosts = {name: answers(ELSE, iommu="pt") for name in ("gpu1", "gpu2")}
    done = provision(hosts)
    assert done.returncode == 1 and not done.stdout
    said = " ".join(done.stderr.split())
    assert all(f"@fake/{name}: iommu is pt, and it is not GRUB that boots it" in said for name in hosts)


def test_a_run_names_what_is_in_the_way_of_all_it_would_do_on_all_hosts(provision):
    """Not the drivers alone, then the cards, then the fabric, each in a run of its own."""
    nowhere = {"echo fabric": ["fabric"]}
    lines, said = answers(ELSE, iommu="pt")
    said["fake_responses"] |= nowhere
    hosts = {
        "gpu1": answers(ELSE, gpus=8),
        "gpu2": answers(ELSE, doca_ofed="3.2.1"),
        "gpu3": (lines, said),
        "gpu4": answers(ELSE, driver="560"),
    }
    done = provision(hosts)
    assert done.returncode == 1 and not done.stdout
    said = " ".join(done.stderr.split())
    for problem in (
        "@fake/gpu1: 8 GPUs promised, 1 on the PCI bus",
        "@fake/gpu2: doca_ofed is 3.2.1: there is no network card",
        "@fake/gpu3: no interface has the address 10.0.0.3",
        "@fake/gpu3: iommu is pt, and it is not GRUB that boots it",
        "@fake/gpu4: driver is 560: must be of branch 580 or 595",
    ):
        assert problem in said, said


def test_a_first_deploy_reboots_for_what_it_tells_grub(provision):
    hosts = {"gpu1": answers(GRUB, iommu="pt"), "gpu2": answers(GRUB)}
    data = {"model": "smollm2-135m-instruct", "tensor_parallel": 1, "pipeline_parallel": 2, "reboot": "due"}
    words = [f"--data={key}={value}" for key, value in data.items()]
    done = provision(hosts, *words, deploy="serve_llama")
    assert done.returncode == 0, done.stderr
    names = [name.rpartition(" | ")[2] for op in json.loads(done.stdout)["plan"] for name in op["names"]]
    assert [name for name in names if name.startswith("Reboot")] == ["Reboot @fake/gpu1"]
    assert names.index("Tell GRUB of it") < names.index("Reboot @fake/gpu1") < names.index("Start replica-0")

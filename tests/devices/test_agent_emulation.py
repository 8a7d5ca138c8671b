"""Machines that are none: what gives an emulator away, from files made up as it leaves them."""

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.agent.facts import emulation, facts, machine
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]

ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a Raspberry Pi, as its files tell."""
    monkeypatch.setenv("EDGEVIT_SYSROOT", str(tmp_path / "root"))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    (tmp_path / "root/proc/thread-self").mkdir(parents=True)
    (tmp_path / "root/proc/cpuinfo").write_text(ARM)
    return tmp_path / "root"


def test_a_board_is_none(root: Path) -> None:
    (root / "proc/thread-self/exe").symlink_to("/usr/bin/python3.11")
    (root / "proc/thread-self/maps").write_text("aaaa-bbbb r-xp 0 fe:00 1  /usr/bin/python3.11\n")
    assert emulation() is None
    assert facts()["emulated"] is None


def test_an_arm_system_on_another_processor(root: Path) -> None:
    (root / "proc/cpuinfo").write_text(X86)
    assert emulation() == "it calls itself aarch64, its CPU is x86"


@pytest.mark.parametrize("arch", ["x86_64", "AMD64", "i686"])
def test_a_pc_whose_cpu_is_an_arm(root: Path, monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: arch)
    assert emulation() == f"it calls itself {arch}, its CPU is Arm"
    (root / "proc/cpuinfo").write_text(X86)
    assert emulation() is None


@pytest.mark.parametrize("arch", ["armv7l", "arm64", "riscv64", ""])
def test_no_contradiction_proves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: arch)
    assert emulation() is None


@pytest.mark.parametrize(
    "exe", ["/usr/bin/qemu-aarch64-static", "/usr/bin/qemu-aarch64 (deleted)", "/opt/box64"]
)
def test_a_program_that_runs_ours(root: Path, exe: str) -> None:
    (root / "proc/thread-self/exe").symlink_to(exe)
    name = Path(exe.split()[0]).name
    assert emulation() == f"this process runs in {name}"


def test_a_program_that_hides_behind_ours(root: Path) -> None:
    (root / "proc/thread-self/exe").symlink_to("/usr/bin/python3.11")
    maps = (
        "5500-5501 r--p 0 fe:00 1  /usr/bin/python3.11\n5600-5700 r-xp 0 0:0 2  /x/qemu-aarch64\n"
    )
    (root / "proc/thread-self/maps").write_text(maps)
    assert emulation() == "this process runs in qemu-aarch64"


def test_a_virtual_machine_without_a_processor_behind_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (root / "proc/cpuinfo").write_text(X86.replace("Intel(R) Xeon(R)", "QEMU TCG CPU version 2.5+"))
    assert emulation() == "its CPU is QEMU TCG CPU version 2.5+"


def test_a_python_that_rosetta_translates(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "usr/bin").mkdir(parents=True)
    sysctl = root / "usr/bin/sysctl"
    sysctl.write_text('#!/bin/sh\n[ "$2" = sysctl.proc_translated ] && echo ${TRANSLATED:?}\n')
    sysctl.chmod(0o755)
    (root / "proc/cpuinfo").unlink()
    monkeypatch.setenv("TRANSLATED", "0")
    assert emulation() is None
    monkeypatch.setenv("TRANSLATED", "1")
    assert emulation() == "Rosetta translates this process"


def test_the_agent_tells_it(open_session: OpenSession, root: Path) -> None:
    (root / "proc/thread-self/exe").symlink_to("/usr/bin/qemu-aarch64-static")
    told = open_session({"EDGEVIT_SYSROOT": str(root)}).facts()
    assert told["emulated"] == "this process runs in qemu-aarch64-static"


def test_a_board_that_keeps_its_name_where_the_kernel_puts_it(root: Path) -> None:
    (root / "sys/firmware/devicetree/base").mkdir(parents=True)
    (root / "sys/firmware/devicetree/base/model").write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    assert machine()["model"] == "Raspberry Pi 4 Model B Rev 1.4"

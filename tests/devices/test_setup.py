"""Setting a board up, on a shell that is this machine: real environments, pip and wheels."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from devices_kit import interpreter
from local_shell import Ended, LocalShell, make_wheel, real_pip

import devices.setup
from devices.profile import load_profile
from devices.remote import look
from devices.setup import SetupReport, environment_python, setup
from devices.wheels import Plan, Wheel, _wheel, fetch_wheels, plan_packages
from edgevit.errors import DeviceError, UnavailableError

PROFILE = load_profile("generic-x86-64")
PLAN = Plan({"tiny": "tiny==1.0"}, ("tiny",), ("nothing else",))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalShell:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))  # others measure on this machine
    return LocalShell(str(tmp_path / "board" / "edgevit"))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Wheel]:
    """A plan of one empty package instead of runtimes, and its wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    found = [_wheel(make_wheel(folder, "tiny")), _wheel(real_pip())]
    monkeypatch.setattr(devices.setup, "plan_packages", lambda *_: PLAN)
    monkeypatch.setattr(devices.setup, "fetch_wheels", lambda *_: found)
    return found


@pytest.fixture
def ready(shell: LocalShell, wheels: list[Wheel], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of a board that was set up before; made once, then copied."""
    kept = tmp_path_factory.getbasetemp() / "ready" / "edgevit"
    if not kept.exists():
        setup(LocalShell(str(kept)), PROFILE, python=sys.executable)
    shutil.copytree(kept, shell.home, symlinks=True)
    report = setup(shell, PROFILE)
    shell.commands.clear()
    return report


def python_of(shell: LocalShell, code: str) -> str:
    done = subprocess.run(
        [environment_python(shell), "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_bare_board_gets_an_environment_of_its_own(
    shell: LocalShell, wheels: list[Wheel], tmp_path: Path
) -> None:
    report = setup(shell, PROFILE, python=sys.executable)
    assert report.versions == {"tiny": "1.0"}
    assert report.proved == ("tiny",)
    assert report.notes == ("nothing else",)
    assert [line.split()[0] for line in report.done] == ["pushed", "made", "installed"]
    assert python_of(shell, "import tiny; print(tiny.__file__)").startswith(shell.home)
    assert python_of(shell, "import sys; print(sys.prefix)") == f"{shell.home}/venv"
    # Wheels are gone, and nothing was written elsewhere.
    assert [p.name for p in Path(shell.home).iterdir()] == ["venv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["board", "tmp", "wheels"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_second_call_finds_nothing_to_do(shell: LocalShell, ready: SetupReport) -> None:
    assert ready.done == ()
    assert ready.versions == {"tiny": "1.0"}
    assert ready.base == look(shell, sys.executable).executable  # which it was is known there
    before = sorted(Path(shell.home).rglob("*"))
    assert setup(shell, PROFILE) == ready
    assert shell.sent == []
    assert sorted(Path(shell.home).rglob("*")) == before


def test_starting_over(shell: LocalShell, ready: SetupReport) -> None:
    assert len(setup(shell, PROFILE, python=sys.executable, fresh=True).done) == 3


class CutError(DeviceError):
    """The connection is gone."""


SLOW = [pytest.param(cut, marks=pytest.mark.slow) for cut in ("tiny-", "venv", "edgevit.json")]


@pytest.mark.parametrize("cut", ["pip-", "install", *SLOW])
def test_one_that_was_cut_short_goes_on(cut: str, shell: LocalShell, wheels: list[Wheel]) -> None:
    def gone(argv: Sequence[str]) -> None:
        sending = argv[0] == "put" and Path(argv[1]).name.startswith(cut)
        if sending or cut in argv[4:9]:
            raise CutError("connection lost")

    shell.before = gone
    with pytest.raises(CutError):
        setup(shell, PROFILE, python=sys.executable)
    sent = [name.removesuffix(".part") for name in shell.sent]
    shell.before, shell.sent = lambda argv: None, []
    report = setup(shell, PROFILE, python=sys.executable)
    assert report.versions == {"tiny": "1.0"}
    if cut not in ("pip-", "tiny-"):  # those had arrived whole, and are not sent again
        assert len(sent) >= 2
        assert not [name for name in shell.sent if name.endswith(".part")]


def site_of(shell: LocalShell) -> Path:
    return next((Path(shell.home) / "venv" / "lib").glob("*/site-packages"))


def test_an_older_version_is_brought_up_to_date(shell: LocalShell, ready: SetupReport) -> None:
    old = site_of(shell) / "tiny-0.9.dist-info"
    (site_of(shell) / "tiny-1.0.dist-info").rename(old)
    for name in ("METADATA", "RECORD"):
        (old / name).write_text((old / name).read_text().replace("1.0", "0.9"))
    report = setup(shell, PROFILE)
    assert [line.split()[0] for line in report.done] == ["pushed", "installed"]
    assert report.versions == {"tiny": "1.0"}
    assert not old.exists()


def test_an_update_that_was_cut_short_is_not_trusted(
    shell: LocalShell, ready: SetupReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(site_of(shell) / "tiny-1.0.dist-info")

    def gone(argv: Sequence[str]) -> None:
        if "install" in argv:
            raise CutError("connection lost")

    shell.before = gone
    with pytest.raises(CutError):
        setup(shell, PROFILE)
    shell.before = lambda argv: None
    report = setup(shell, PROFILE, python=sys.executable)
    assert "made an environment" in report.done[1]
    assert report.versions == {"tiny": "1.0"}


def test_an_environment_that_is_broken_is_made_anew(shell: LocalShell, ready: SetupReport) -> None:
    Path(environment_python(shell)).unlink()
    report = setup(shell, PROFILE, python=sys.executable)
    assert len(report.done) == 3
    assert python_of(shell, "import tiny; print(1)") == "1"


def test_what_is_damaged_on_the_way_is_not_installed(
    shell: LocalShell, wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalShell.put

    def damage(self: LocalShell, local: Path, remote: str) -> None:
        put(self, local, remote)
        if "tiny" in remote:
            with Path(remote).open("r+b") as stream:
                stream.write(b"X")

    monkeypatch.setattr(LocalShell, "put", damage)
    with pytest.raises(DeviceError, match=r"damaged on the way to the board: tiny-1\.0"):
        setup(shell, PROFILE, python=sys.executable)
    assert not Path(environment_python(shell)).exists()


def test_a_disk_without_room_is_told_before_anything_is_sent(
    shell: LocalShell, wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(look(shell, sys.executable), free_bytes=30 * 2**20)
    monkeypatch.setattr(devices.setup, "look", lambda *_: small)
    with pytest.raises(DeviceError, match="disk has 30 MiB free") as caught:
        setup(shell, PROFILE, python=sys.executable)
    assert shell.home in caught.value.message
    assert shell.sent == []


def test_a_measurement_is_not_disturbed(
    shell: LocalShell, wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = replace(look(shell, sys.executable), holder={"user": "ann", "command": "edgevit bench"})
    monkeypatch.setattr(devices.setup, "look", lambda *_: taken)
    with pytest.raises(DeviceError, match="a measurement runs there by ann: `edgevit bench`"):
        setup(shell, PROFILE, python=sys.executable)
    assert not Path(shell.home).exists()


def test_whoever_lives_on_from_a_cut_connection_is_waited_for(
    shell: LocalShell, wheels: list[Wheel]
) -> None:
    holder = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
        "; print('held', flush=True); sys.stdin.read()"
    )
    Path(shell.home).mkdir(parents=True)
    command = [sys.executable, "-c", holder, shell.home]
    options = {"python": sys.executable}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        ours = threading.Thread(target=setup, args=(shell, PROFILE), kwargs=options)
        ours.start()
        while not any("venv" in command for command in shell.commands):
            time.sleep(0.05)
        time.sleep(1.5)
        assert not (Path(shell.home) / "venv").exists()
        other.communicate(timeout=10)
    ours.join(60)
    assert setup(shell, PROFILE).versions == {"tiny": "1.0"}


def test_a_debian_without_venv_is_told_what_to_install(
    shell: LocalShell, wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(look(shell, sys.executable), venv=False)
    monkeypatch.setattr(devices.setup, "look", lambda *_: bare)
    with pytest.raises(DeviceError, match="no venv module") as caught:
        setup(shell, PROFILE, python=sys.executable)
    major, minor = sys.version_info[:2]
    assert f"sudo apt install python{major}.{minor}-venv" in (caught.value.hint or "")


def test_a_runtime_that_does_not_work_is_named(shell: LocalShell, ready: SetupReport) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    for source, said, hint in (
        (crash, "tiny does not work on the board: its Python was killed by SIGILL", "ARMV8"),
        ("raise ImportError('libc.so.6: version `GLIBC_2.34 not found')", "GLIBC_2.34", "older"),
    ):
        (site_of(shell) / "tiny.py").write_text(source)
        with pytest.raises(DeviceError, match=said) as caught:
            setup(shell, PROFILE)
        assert hint in (caught.value.hint or "")


def test_a_full_disk_while_installing(shell: LocalShell, ready: SetupReport) -> None:
    shell.answers["rm"] = Ended(1, b"", b"rm: No space left on device\n")
    with pytest.raises(DeviceError, match="No space left") as caught:
        setup(shell, PROFILE, python=sys.executable, fresh=True)
    assert "disk is full" in (caught.value.hint or "")


def fetched(python: str, profile: Any, shell: LocalShell) -> None:
    """Fetch the real packages, or skip where there is no network."""
    board = look(shell, python)
    try:
        fetch_wheels(plan_packages(board, profile), board)
    except UnavailableError as error:
        pytest.skip(error.message)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.6", "3.9", "3.11"])
def test_real_runtimes(version: str, shell: LocalShell) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    profile = load_profile("jetson-nano" if version == "3.6" else "generic-x86-64")
    fetched(python, profile, shell)
    report = setup(shell, profile, python=python)
    assert {"3.6": "1.10.0", "3.9": "1.19.2", "3.11": "1.31.1"}[version] == report.versions[
        "onnxruntime"
    ]
    assert "onnxruntime" in report.proved
    if version != "3.6":
        assert report.versions["ai-edge-litert"]
    assert setup(shell, profile).done == ()


@pytest.mark.slow
def test_the_board_fetches_for_itself(shell: LocalShell) -> None:
    plain = replace(load_profile("generic-x86-64"), runtimes={}, default_format=None)
    fetched(sys.executable, plain, shell)
    report = setup(shell, plain, python=sys.executable, online=True)
    assert list(report.versions) == ["numpy"]
    assert shell.sent == ["edgevit.json"]

"""Setting a board up over a real connection that is cut in the middle."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from local_shell import make_wheel, real_pip

import devices.setup
from devices.profile import load_profile
from devices.remote import look
from devices.setup import setup
from devices.wheels import Plan, _wheel
from edgevit.errors import DeviceError
from edgevit.progress import Progress

pytest.importorskip("asyncssh")
from sshd_kit import Sshd

from devices.ssh import SshDevice

PROFILE = load_profile("generic-x86-64")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A server that the user knows; no measurement of others is in the way."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "me" / ".ssh").mkdir(parents=True)
    (tmp_path / "sshd").mkdir()
    with Sshd(tmp_path / "sshd") as server:
        (tmp_path / "me" / ".ssh" / "known_hosts").write_text(server.host_key)
        yield server


class Cut(Progress):
    """Cuts the connection a moment after a stage begins."""

    def __init__(self, server: Sshd, stage: str, after_s: float) -> None:
        self._server, self._stage, self._after_s = server, stage, after_s
        self.cut: list[int] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if name == self._stage:
            threading.Timer(self._after_s, lambda: self.cut.extend(self._server.cut())).start()
        yield


def test_an_installation_that_was_cut_goes_on(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    found = [_wheel(make_wheel(folder, "tiny")), _wheel(real_pip())]
    plan = Plan({"tiny": "tiny==1.0"}, ("tiny",))
    monkeypatch.setattr(devices.setup, "plan_packages", lambda *_: plan)
    monkeypatch.setattr(devices.setup, "fetch_wheels", lambda *_: found)
    monkeypatch.setattr(devices.setup, "look", lambda *a: replace(look(*a), holder=None))
    cut = Cut(server, "install the packages", 0.3)
    device = SshDevice(server.host())
    with device.open() as session, pytest.raises(DeviceError) as caught:
        setup(session, PROFILE, python=sys.executable, progress=cut)
    assert cut.cut
    assert caught.value.exit_code == 3
    with device.open() as session:
        report = setup(session, PROFILE, python=sys.executable)
        assert report.versions == {"tiny": "1.0"}
        assert "pushed 0 of 2 packages" in report.done[0]
        assert session.execute([report.python, "-c", "import tiny"]).status == 0
    assert [p.name for p in (server.home / ".cache" / "edgevit").iterdir()] == ["venv"]

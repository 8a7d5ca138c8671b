"""Sessions that share no lock with anything else on the machine, and files to run in them."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from devices_kit import make_dense, make_endless
from sshd_kit import Boards, Sshd

from devices.base import Subject
from devices.local import LocalDevice, LocalSession

OpenSession = Callable[..., LocalSession]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables that keep an agent to itself."""
    (tmp_path / "tmp").mkdir()
    return {"TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def open_session(environment: dict[str, str]) -> Iterator[OpenSession]:
    """Opens local sessions, and closes them at the end."""
    opened = []

    def open_one(extra: Mapping[str, str] | None = None, python: str | None = None) -> LocalSession:
        device = LocalDevice(python=python, environment={**environment, **(extra or {})})
        opened.append(device.open())
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


@pytest.fixture
def session(open_session: OpenSession) -> LocalSession:
    return open_session()


@pytest.fixture
def dense(tmp_path: Path) -> Subject:
    """``relu(x @ w)`` of any batch, with four golden samples."""
    return make_dense(tmp_path, "dense")


@pytest.fixture
def endless(tmp_path: Path) -> Subject:
    """A file whose one inference takes minutes inside native code; it cannot be checked."""
    return make_endless(tmp_path)


@pytest.fixture(scope="session")
def shared_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One SSH server for all tests that leave it as it is."""
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of whoever runs edgevit, with nothing in it."""
    (tmp_path / "user" / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / "user"


@pytest.fixture
def boards(
    shared_sshd: Sshd, user_home: Path, tmp_path: Path, environment: dict[str, str]
) -> Iterator[Boards]:
    """Boards behind the shared server, known to the user; their sessions are closed at the end."""
    with Boards(shared_sshd, user_home, tmp_path / "board", sys.executable, environment) as boards:
        yield boards

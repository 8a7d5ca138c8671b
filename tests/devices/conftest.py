"""Sessions that share no lock with anything else on the machine, and files to run in them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from devices_kit import make_dense, make_endless

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

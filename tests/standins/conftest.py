"""Boards that are none: real systems under an emulator, reached over real SSH."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm64.board import Board, CannotRunError, ways
from arm64.rootfs import CannotBuildError, build

from devices.hosts import Host


@pytest.fixture(scope="session")
def arm64_ways() -> tuple[str, ...]:
    """How the Raspberry Pi stand-in can run here; skips where it cannot, or cannot be built."""
    try:
        found = ways()
        build()
    except (CannotRunError, CannotBuildError) as error:
        pytest.skip(f"no Raspberry Pi stand-in: {error}")
    return found


@pytest.fixture(scope="session")
def running_pi(
    arm64_ways: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Board]:
    """A Raspberry Pi stand-in with its runtimes, one for all tests of a process."""
    with Board(tmp_path_factory.mktemp("pi")) as board:
        yield board


@pytest.fixture
def pi(running_pi: Board) -> Board:
    """The same, at rest, whatever the test before made it say."""
    running_pi.calm()
    return running_pi


@pytest.fixture
def pi_host(pi: Board, at_home: Path) -> Host:
    """The stand-in as a user would configure it; whoever runs the tests knows its host key."""
    return pi.introduce(at_home)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, with its configuration."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    return home

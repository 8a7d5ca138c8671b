"""Boards that are none: real systems under an emulator, reached over real SSH."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from arm64.board import Board, CannotRunError, ways
from arm64.rootfs import CannotBuildError, build


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

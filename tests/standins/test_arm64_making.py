"""What becomes of the Raspberry Pi stand-in where it cannot be made, or several make it at once."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from arm64 import board, rootfs
from arm64.board import CannotRunError
from arm64.rootfs import CannotBuildError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rootfs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return tmp_path / "cache"


def test_it_is_built_once_however_many_ask(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def slowly(place: Path) -> None:
        built.append(place)
        time.sleep(0.3)
        place.write_text("a tarball")

    monkeypatch.setattr(rootfs, "_build", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: rootfs.build(), range(3)))
    assert built == [found[0]]
    assert found == [found[0]] * 3
    assert found[0].read_text() == "a tarball"


def test_what_is_of_no_use_any_more_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "arm64-killed").mkdir(parents=True)
    (cache / "arm64-killed/rootfs.tar").write_text("half")
    (cache / "arm64-0123.tar").write_text("of another version")
    monkeypatch.setattr(rootfs, "_build", lambda place: place.write_text("new"))
    place = rootfs.build()
    assert sorted(path.name for path in cache.glob("arm64-*")) == [place.name]
    monkeypatch.setattr(rootfs, "_build", lambda _: pytest.fail("it is there already"))
    assert rootfs.build() == place


def test_a_build_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str) -> None:
        Path(command[-1]).write_text("half of a tarball")
        raise CannotBuildError("no network")

    monkeypatch.setattr(rootfs, "_run", run)
    monkeypatch.setattr(rootfs, "_mirror", lambda: ())
    with pytest.raises(CannotBuildError, match="no network"):
        rootfs.build()
    assert list(cache.glob("arm64-*")) == []


def test_a_command_that_fails_is_quoted() -> None:
    with pytest.raises(CannotBuildError, match=r"^sh failed: one / two$"):
        rootfs._run("sh", "-c", "echo one; echo two >&2; exit 3")


@pytest.mark.parametrize("tool", ["mmdebstrap", "dpkg-deb"])
def test_what_builds_it_may_be_absent(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else name)
    with pytest.raises(CannotBuildError, match=f"^{tool} is not installed$"):
        rootfs.build()


@pytest.mark.parametrize("tool", board.TOOLS)
def test_what_runs_it_may_be_absent(monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else name)
    with pytest.raises(CannotRunError, match=f"^{tool} is not installed$"):
        board.ways.__wrapped__()


@pytest.mark.parametrize(
    ("allowed", "found"), [("unshare", ("namespace",)), ("proot", ("proot",)), ("", None)]
)
def test_a_machine_may_refuse_one_way_or_both(
    monkeypatch: pytest.MonkeyPatch, allowed: str, found: tuple[str, ...] | None
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(board, "_works", lambda *command: command[0] == allowed)
    if found is None:
        with pytest.raises(CannotRunError, match=r"neither namespaces .* nor proot are allowed"):
            board.ways.__wrapped__()
    else:
        assert board.ways.__wrapped__() == found

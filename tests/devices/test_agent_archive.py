"""The one file that travels."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from devices_kit import interpreter

from devices import agent_archive as archive
from edgevit.errors import OutputError

SOURCES = sorted(archive.SOURCES.rglob("*.py"))

#: Top-level modules that the agent may import. Runtimes are imported by name, where they are used.
ALLOWED = {"numpy", *sys.stdlib_module_names}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_bytes_depend_on_the_sources_alone(tmp_path: Path) -> None:
    script = "import sys; from devices.agent_archive import archive_bytes as a; " \
             "sys.stdout.buffer.write(a())"  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=environment
    ).stdout
    assert archive.archive_bytes() == other


def test_the_name_changes_with_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = archive.archive_name()
    copy = tmp_path / "agent"
    for file in SOURCES:
        target = copy / file.relative_to(archive.SOURCES)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(archive, "SOURCES", copy)
    archive.archive_bytes.cache_clear()
    try:
        assert archive.archive_name() == before, "line ends of a checkout make no difference"
        (copy / "clock.py").write_text("# another clock\n")
        archive.archive_bytes.cache_clear()
        assert archive.archive_name() != before
    finally:
        archive.archive_bytes.cache_clear()


def test_it_holds_every_source_and_nothing_else() -> None:
    with zipfile.ZipFile(archive.agent_archive()) as content:
        names = content.namelist()
        assert {info.date_time for info in content.infolist()} == {archive.TIMESTAMP}
    package = [f"{archive.PACKAGE}/{f.relative_to(archive.SOURCES).as_posix()}" for f in SOURCES]
    assert names == sorted(["__main__.py", *package])


def test_a_damaged_copy_is_written_again(fresh_cache: Path) -> None:
    path = archive.agent_archive()
    path.write_bytes(path.read_bytes()[:100])
    assert archive.agent_archive().read_bytes() == archive.archive_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_a_cache_that_cannot_be_written(fresh_cache: Path) -> None:
    fresh_cache.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot write the agent"):
        archive.agent_archive()


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.relative_to(archive.SOURCES).as_posix())
def test_the_agent_imports_nothing_of_ours(source: Path) -> None:
    depth = len(source.relative_to(archive.SOURCES).parts)
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").partition(".")[0] in ALLOWED
            assert node.module != "__future__", "annotations are no feature of Python 3.6"
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= depth, "stays inside the archive"


@pytest.mark.parametrize("version", ["3.6", "3.8"])
def test_old_pythons_read_every_source(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    with zipfile.ZipFile(archive.agent_archive()) as content:
        content.extractall(tmp_path / "agent")
    command = [python, "-W", "error", "-m", "compileall", "-q", str(tmp_path / "agent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_python_that_is_too_old_says_so() -> None:
    python = interpreter("2.7")
    if python is None:
        pytest.skip("there is no Python 2.7 here")
    command = [python, str(archive.agent_archive())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Python 3.6" in done.stderr

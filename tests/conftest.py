"""Fixtures that every folder of tests uses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A shell that starts tests in the background has them ignore Ctrl-C, and their children with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests import onnxruntime themselves, too.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


#: Files whose slow tests take longest, in that order: what is left at the end should be short.
LONGEST = (
    "test_every_model_in_onnx", "test_every_family", "test_families_in_runtimes",
    "test_arm64_bench", "test_export_dense", "test_agent_phone", "test_count", "test_ci",
    "test_zoo_matrix", "test_export_formats", "test_arm64_journey", "test_arm64_count",
    "test_devices_ssh",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests of the longest files first, for workers that take file by file."""
    rank = {name: number for number, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        slow = item.get_closest_marker("slow") is not None
        return rank.get(item.path.stem, len(rank)) if slow else len(rank)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache, configuration and what tune found."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(base / "data"))
    # Nobody writes there: a test that configures something sets a folder of its own.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(base / "no-config"))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgevit.verbs.reproduce as verb
from devices.base import Schedule
from edgevit.report.protocols import PROTOCOLS, Claim, Protocol

SMALL = Protocol(
    "small", "sima", "Table 3", "two blocks of SimA's Table 3",
    (("softmax-n256-d64-h8", "sima-n256-d64-h8-order_nn"),),
    (Claim("sima-n256-d64-h8-order_nn", "softmax-n256-d64-h8"),),
    runs=30, stated="nothing",
)  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.report.protocols.PROTOCOLS", {**PROTOCOLS, "small": SMALL})
    quick = Schedule(min_runs=10, min_seconds=0.1, warmup_runs=1, warmup_seconds=0)
    monkeypatch.setattr(verb, "QUICK", quick)


def test_a_protocol_is_measured_here_and_goes_on_where_it_was(edgevit: Any, tmp_path: Path) -> None:
    told = edgevit("reproduce", "small", "--quick", "--json", "-o", str(tmp_path))
    assert told.code == 0, told.err
    (found,) = told.json
    assert found["format"] == "onnx"
    assert all(row["median_ms"] > 0 for row in found["rows"])
    assert all(len(row["ratios"]) == 3 for row in found["rows"])
    assert found["deviations"][0].startswith("a quick run")
    assert "runs by time in place of 30" in found["deviations"]
    assert len(list((tmp_path / "small").glob("*.json"))) == 2


def test_the_papers_own_protocol_is_no_deviation(edgevit: Any, tmp_path: Path) -> None:
    told = edgevit("reproduce", "small", "-o", str(tmp_path))
    assert told.code == 0, told.err
    assert "not the protocol" not in told.out
    assert "sima-n256-d64-h8-order_nn faster than softmax-n256-d64-h8" in told.out
    assert "runs 30" in told.out


def test_the_list_and_wrong_names(edgevit: Any) -> None:
    assert {p["name"] for p in edgevit("reproduce", "--list", "--json").json} >= set(PROTOCOLS)
    assert "efficientvit-table2" in edgevit("reproduce", "--list").out
    assert edgevit("reproduce").code == 2
    unknown = edgevit("reproduce", "elevit-tabel1")
    assert (unknown.code, unknown.out) == (2, "")
    assert "elevit-table1" in unknown.err
    assert edgevit("reproduce", "small", "--as", "pdf").code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "batch: expected at least 1, got 0"),
        (["--threads", "0"], "threads: expected at least 1, got 0"),
        (["--runs", "-3"], "runs: expected at least 1, got -3"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--format", "onxn"], "did you mean onnx"),
        (["--format", "coreml"], "does not run coreml"),
        (["--device", "nowhere"], "unknown device"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_exported(
    edgevit: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(verb, "bench", lambda *_, **__: pytest.fail("it was measured"))
    told = edgevit("reproduce", "small", *arguments, "-o", str(tmp_path))
    assert (told.code, told.out) == (2, "")
    assert message in told.err

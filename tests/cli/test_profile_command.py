"""``edgevit profile``: what it prints and writes, and what it makes of bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevit.bundle import Bundle
from edgevit.measure.profile import read_profiles
from edgevit.source import BlockSpec
from edgevit.verbs.export import export


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    spec = BlockSpec("softmax", 16, 8, 2, projections=True)
    return export(spec, output=tmp_path_factory.mktemp("exports"), formats=["onnx"])


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "lock"))


def test_it_prints_rows_and_what_they_cost(edgevit: Any, bundle: Bundle, tmp_path: Path) -> None:
    outcome = edgevit("profile", bundle.path, "--seconds", 0.01, "--no-peak", "-o", tmp_path / "r")
    assert outcome.code == 0, outcome.err
    for words in ("times by onnxruntime's profiler", "in turns", "MatMul", "exp: ", "bound: "):
        assert words in outcome.out
    (made,) = read_profiles(tmp_path / "r")
    assert made.filename in outcome.err


def test_json_is_the_profile_with_its_summary(edgevit: Any, bundle: Bundle, tmp_path: Path) -> None:
    options = ("--seconds", 0.01, "--no-peak", "--json", "--by", "kind", "-o", tmp_path / "r")
    outcome = edgevit("profile", bundle.path, *options)
    told = outcome.json
    assert outcome.err == ""
    assert told["profile_schema_version"] == 1
    assert 0 < told["summary"]["exp"]["softmax"] < 1
    assert sum(part["share"] for part in told["summary"]["by"]["kind"]) == pytest.approx(1)


def test_a_report_of_profiles_alone(edgevit: Any, bundle: Bundle, tmp_path: Path) -> None:
    edgevit("profile", bundle.path, "--seconds", 0.01, "--no-peak", "-o", tmp_path / "r")
    outcome = edgevit("report", tmp_path / "r", "-o", tmp_path / "page.html", "--json")
    assert (outcome.json["results"], outcome.json["profiles"]) == (0, 1)
    assert 'id="profiles"' in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "blok"], "--by: expected op"),
        (["--ablate", "op"], "--ablate: expected block"),
        (["--seconds", "0"], "--seconds: expected more than 0"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--top", "-1"], "-1 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--format", "onxn"], "did you mean onnx"),
        (["--format", "coreml"], "does not run coreml"),
        (["--device", "nowhere"], "unknown device"),
    ],
)
def test_wrong_usage(
    edgevit: Any, bundle: Bundle, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = edgevit("profile", bundle.path, *arguments, "-o", tmp_path / "r")
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "r").exists()


def test_a_bundle_that_is_not_there(edgevit: Any, tmp_path: Path) -> None:
    outcome = edgevit("profile", tmp_path / "none", "-o", tmp_path / "r")
    assert outcome.code == 2
    assert "is no bundle" in outcome.err


def test_the_peak(edgevit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert edgevit("devices", "peak", "local", "--threads", 0).code == 2
    told = edgevit("devices", "peak", "local", "--threads", 1, "--json").json
    assert told["flops_per_s"] > 1e8
    shown = edgevit("devices", "peak", "local", "--threads", 1)
    assert "GFLOP/s" in shown.out
    assert f"{told['flops_per_s'] / 1e9:.4g}" in shown.out

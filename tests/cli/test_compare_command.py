"""``edgevit compare``: exit codes, limits, and what it makes of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_results import blocks, make_result

from edgevit.cli.compare import parse_share
from edgevit.errors import OptionError


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of results; one of two subjects is 10 % slower in the second."""
    base, head = tmp_path / "base", tmp_path / "head"
    for folder, ms in ((base, 40), (head, 44)):
        make_result(samples=blocks(ms, seed=ms)).write(folder)
        make_result(threads=2, samples=blocks(30, seed=ms)).write(folder / "more")
    return base, head


@pytest.mark.parametrize("text", ["5%", "5 %", "0.05", ".05", " 5.0 % "])
def test_shares_parse_alike(text: str) -> None:
    assert parse_share("--fail-over", text) == pytest.approx(0.05)


@pytest.mark.parametrize("text", ["5", "1.0", "-5%", "five", "", "nan", "5%%", "0,05", "1e-2"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(OptionError, match="a share such as 5%"):
        parse_share("--fail-over", text)


@pytest.mark.parametrize(("limit", "code"), [("5%", 1), ("0.05", 1), ("20%", 0)])
def test_the_limit_sets_the_exit_code(
    edgevit: Any, sides: tuple[Path, Path], limit: str, code: int
) -> None:
    outcome = edgevit("compare", *sides, "--fail-over", limit)
    assert outcome.code == code
    assert "slower" in outcome.out
    assert ("over the limit" in outcome.out) == bool(code)
    assert outcome.err == ""


def test_without_a_limit_it_only_tells(edgevit: Any, sides: tuple[Path, Path]) -> None:
    outcome = edgevit("compare", *sides)
    assert outcome.code == 0
    assert "1 slower, 1 no difference shown. No limit was set." in outcome.out
    assert edgevit("compare", *sides, "--threshold", "15%").out.count("no difference shown") == 3


def test_json_alone_on_stdout_with_the_exit_code(edgevit: Any, sides: tuple[Path, Path]) -> None:
    outcome = edgevit("compare", *sides, "--fail-over", "5%", "--json")
    assert outcome.code == outcome.json["exit_code"] == 1
    assert [row["verdict"] for row in outcome.json["rows"]] == ["slower", "no difference shown"]


def test_single_files_and_markdown(edgevit: Any, sides: tuple[Path, Path]) -> None:
    files = [next(side.glob("*.json")) for side in sides]
    outcome = edgevit("compare", *files, "--format", "md")
    assert outcome.code == 0
    assert outcome.out.startswith("**latency: 1 slower.")


def test_other_metrics(edgevit: Any, sides: tuple[Path, Path]) -> None:
    outcome = edgevit("compare", *sides, "-m", "size")
    assert (outcome.code, "2 no difference shown" in outcome.out) == (0, True)
    outcome = edgevit("compare", *sides, "-m", "instructions")
    assert (outcome.code, "base has no instructions" in outcome.out) == (3, True)
    outcome = edgevit("compare", *sides, "-m", "latncy")
    assert (outcome.code, "did you mean latency" in outcome.err) == (2, True)


def test_nothing_in_common_is_not_a_pass(edgevit: Any, tmp_path: Path) -> None:
    make_result(name="a").write(tmp_path / "base")
    make_result(name="b").write(tmp_path / "head")
    outcome = edgevit("compare", tmp_path / "base", tmp_path / "head")
    assert outcome.code == 3
    assert "nothing in common to compare: base has a onnx on rpi4; head has b onnx" in outcome.err
    assert outcome.out == ""


def test_another_device_or_version_needs_a_word(edgevit: Any, tmp_path: Path) -> None:
    make_result().write(tmp_path / "base")
    make_result(device="rpi5", runtime_version="1.32.0").write(tmp_path / "head")
    places = (tmp_path / "base", tmp_path / "head")
    outcome = edgevit("compare", *places)
    assert outcome.code == 3
    assert "rpi4 in base and rpi5 in head" in outcome.err
    outcome = edgevit("compare", *places, "--across-devices")
    assert outcome.code == 3
    assert "onnxruntime 1.31.1 in base, onnxruntime 1.32.0 in head" in outcome.err
    assert edgevit("compare", *places, "--across-devices", "--across-versions").code == 0


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 2, "holds no results"),
        ("{", 1, "bad.json is damaged"),
        ('{"schema_version": 1, "files": {}}', 1, "bad.json is not a result of edgevit"),
        ("older", 1, "bad.json has schema version 0; this edgevit reads 1"),
        ("nan", 1, "bad.json is damaged: NaN is not a number"),
        ("cut", 1, "bad.json is damaged"),
    ],
)
def test_bad_input_is_named(
    edgevit: Any, tmp_path: Path, text: str | None, code: int, message: str
) -> None:
    make_result().write(tmp_path / "base")
    bad = tmp_path / "head"
    bad.mkdir()
    document = make_result().to_json()
    if text == "older":
        text = json.dumps(document | {"schema_version": 0})
    elif text == "nan":
        document["samples_ns"][0]["ns"][0] = float("nan")
        text = json.dumps(document)
    elif text == "cut":
        text = json.dumps(document)[:-300]
    if text is not None:
        (bad / "bad.json").write_text(text)
    outcome = edgevit("compare", tmp_path / "base", bad)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err

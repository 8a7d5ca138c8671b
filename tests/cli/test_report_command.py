"""``edgevit report``: the file it writes, and what it makes of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_results import make_result


def test_it_writes_one_file_and_names_it(edgevit: Any, tmp_path: Path) -> None:
    make_result().write(tmp_path / "results")
    make_result(name="deit_tiny", emulated=True).write(tmp_path / "results" / "more")
    target = tmp_path / "deep" / "page.html"
    outcome = edgevit("report", tmp_path / "results", "-o", target, "--title", "Boards")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(target)
    assert "2 results, " in outcome.err
    page = target.read_text(encoding="utf-8")
    assert "<h1>Boards</h1>" in page
    assert 'id="emulated"' in page
    assert [p.name for p in target.parent.iterdir()] == ["page.html"]


def test_json_tells_what_was_written(edgevit: Any, tmp_path: Path) -> None:
    make_result().write(tmp_path / "a")
    make_result(threads=2).write(tmp_path / "b")
    target = tmp_path / "page.html"
    outcome = edgevit("report", tmp_path / "a", tmp_path / "b", "-o", target, "--json")
    assert outcome.json == {
        "file": str(target),
        "bytes": target.stat().st_size,
        "results": 2,
        "profiles": 0,
    }
    assert outcome.err == ""


def test_published_figures_can_be_left_out(edgevit: Any, tmp_path: Path) -> None:
    make_result().write(tmp_path / "results")
    for option, there in (("--published", True), ("--no-published", False)):
        edgevit("report", tmp_path / "results", "-o", tmp_path / "page.html", option)
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert ('id="published"' in page) == there


def test_a_place_that_cannot_be_written(edgevit: Any, tmp_path: Path) -> None:
    make_result().write(tmp_path / "results")
    (tmp_path / "file").write_text("")
    outcome = edgevit("report", tmp_path / "results", "-o", tmp_path / "file" / "page.html")
    assert (outcome.code, outcome.out) == (3, "")
    assert "cannot write" in outcome.err


def bad_inputs() -> dict[str, tuple[str | None, int, str]]:
    document = make_result().to_json()
    nan = make_result().to_json()
    nan["samples_ns"][0]["ns"][0] = float("nan")
    return {
        "empty folder": (None, 2, "holds no results"),
        "truncated": (json.dumps(document)[:-300], 1, "bad.json is damaged"),
        "foreign": ('{"name": "package"}', 1, "bad.json is not a result of edgevit"),
        "older schema": (json.dumps(document | {"schema_version": 0}), 1, "schema version 0"),
        "NaN samples": (json.dumps(nan), 1, "NaN is not a number that JSON knows"),
        "null samples": (json.dumps(document | {"samples_ns": None}), 1, "expected a list"),
    }


@pytest.mark.parametrize("command", ["report", "table"])
@pytest.mark.parametrize("case", list(bad_inputs()))
def test_bad_input_is_named_and_nothing_written(
    edgevit: Any, in_tmp: Path, command: str, case: str
) -> None:
    text, code, message = bad_inputs()[case]
    folder = in_tmp / "results"
    folder.mkdir()
    if text is not None:
        (folder / "bad.json").write_text(text)
    outcome = edgevit(command, folder)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert not (in_tmp / "report.html").exists()


def test_a_folder_that_is_not_there(edgevit: Any, in_tmp: Path) -> None:
    for command in ("report", "table"):
        outcome = edgevit(command)
        assert outcome.code == 2
        assert "there is no result results" in outcome.err

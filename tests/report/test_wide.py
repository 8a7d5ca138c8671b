from __future__ import annotations

import csv
import io
import json
from typing import Any

import pandas as pd
import pytest
from made_results import make_result

from edgevit.report.render import render
from edgevit.report.table import build_table


def results() -> list[Any]:
    return [
        make_result(name="deit_tiny", ms=10, format="torch"),
        make_result(name="deit_tiny", ms=5, format="onnx"),
        make_result(name="deit_tiny", ms=4, format="onnx", device="rpi5"),
        make_result(name="elevit", ms=40, format="onnx"),
    ]


def wide(*made: Any, **options: Any) -> pd.DataFrame:
    return build_table(made or results(), wide=True, **options)


def cells(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """What Markdown shows, by model and heading."""
    lines = [line for line in render(frame, "md").splitlines() if line.startswith("|")]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return {row[heads.index("model")]: dict(zip(heads, row, strict=True)) for row in rows}


def test_a_row_a_model_and_columns_by_device_and_format() -> None:
    frame = wide(relative_to="torch")
    assert list(frame["model"]) == ["deit_tiny", "elevit"]
    shown = cells(frame)
    assert float(shown["deit_tiny"]["rpi4, torch: median (ms)"]) == pytest.approx(10, rel=0.01)
    assert float(shown["deit_tiny"]["rpi4, onnx: speed vs torch"]) == pytest.approx(2, rel=0.02)
    assert float(shown["deit_tiny"]["rpi5, onnx: median (ms)"]) == pytest.approx(4, rel=0.01)
    assert "–" in shown["deit_tiny"]["rpi4, onnx: 95 % interval (ms)"]
    assert float(shown["deit_tiny"]["rpi4, onnx: images/s"]) == pytest.approx(200, rel=0.02)
    assert shown["elevit"]["rpi5, onnx: median (ms)"] == "–"
    assert shown["elevit"]["rpi4, onnx: size (MiB)"] == "90.0"


def test_memory_stands_where_it_was_measured() -> None:
    (row,) = cells(wide(make_result())).values()
    assert float(row["rpi4, onnx: memory (MiB)"]) > 0


def test_what_has_no_time_says_why_and_what_is_unsteady_is_marked() -> None:
    made = [
        make_result(name="a", ms=7, status="unstable", reason="a fan"),
        make_result(name="b", status="mismatch"),
        make_result(name="c", ms=66.66, emulated=True),
    ]
    frame = wide(*made, include="all")
    shown = cells(frame)
    assert shown["a"]["rpi4, onnx: median (ms)"].endswith(" †")
    assert shown["b"]["rpi4, onnx: median (ms)"] == "mismatch"
    assert shown["c"]["rpi4 (emulated), onnx: median (ms)"] == "emulated"
    assert "66." not in render(frame, "csv")
    real = wide(make_result(ms=66.66))
    assert "66." in render(real, "csv")


def test_precisions_and_settings_stay_apart() -> None:
    made = [
        make_result(ms=4, precision="fp16"),
        make_result(ms=8, precision="fp32"),
        make_result(ms=2, threads=4),
    ]
    frame = wide(*made)
    assert len(frame) == 2  # threads are rows
    heads = render(frame, "md").splitlines()[0]
    assert "rpi4, onnx fp16: median (ms)" in heads
    assert "rpi4, onnx fp32: median (ms)" in heads


def test_published_figures_have_columns_of_their_own() -> None:
    frame = wide(make_result(name="efficientvit_m0"), published=True)
    (row,) = cells(frame).values()
    heads = [head for head in row if head.startswith("published, ")]
    assert heads
    assert all("median" not in head for head in heads)
    assert any("340.1 images/s" in row[head] for head in heads)
    assert "efficientvit, Table 2" in render(frame, "md")


@pytest.mark.parametrize("form", ["text", "latex", "md"])
def test_every_form_shows_every_figure(form: str) -> None:
    text = render(wide(), form)
    assert text.count("median (ms)") == 3
    assert "measured on rpi4" in text


def test_csv_and_json_carry_whole_figures_and_status() -> None:
    frame = wide(relative_to="torch")
    rows = list(csv.DictReader(io.StringIO(render(frame, "csv"))))
    assert rows[0]["rpi5, onnx/status"] == "ok"
    told = json.loads(render(frame, "json"))
    assert told["rows"][0]["rpi4, onnx/median_ms"] == float(rows[0]["rpi4, onnx/median_ms"])
    assert told["rows"][1]["rpi5, onnx/median_ms"] is None


def test_a_narrow_terminal_loses_a_figure_of_every_group_at_once() -> None:
    text = render(wide(), "text", width=150)
    assert "no room for" in text
    head = text.splitlines()[0]
    assert head.count("images/s") in (0, 3)
    assert text.count("median (ms)") == 3


def test_no_result_is_no_table() -> None:
    frame = wide(make_result(status="failed"))
    assert render(frame, "md").startswith("no result to show")

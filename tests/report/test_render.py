from __future__ import annotations

import html
import io
import json
import re
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from made_results import blocks, make_result
from markdown_it import MarkdownIt
from rich.console import Console

from edgevit.errors import UnknownNameError
from edgevit.report.render import FORMATS, escape_latex, escape_markdown, rich_table, significant
from edgevit.report.table import COLUMNS, build_table, render

NASTY = r"a|b_c*d* [x](y) <b>&amp; `q` $1$ 50% #1 {z} ~~s~~ \n ^ _e_ 'f' " + '"g"\nh'
FLAT = " ".join(NASTY.split())


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    results = [
        make_result(),
        make_result(ms=80, format="torch", backend="torch", runtime_version="2.13.0"),
        make_result(ms=35, format="tflite", status="unstable", reason="drift of 3 % & more"),
        make_result(ms=9000, device="rpi5", emulated=True),
        make_result(name="efficientformerv2_l", status="mismatch", reason="logits_0 is off"),
        make_result(name="elevit_qkdot_fvdot", samples=blocks(123.456, rounds=3), batch=8),
    ]
    return build_table(results, include="all", relative_to="torch", published=True)


def markdown_cells(text: str) -> list[list[str]]:
    """The table of a Markdown document, as a reader sees it."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if token.type == "inline" and before.type in ("th_open", "td_open"):
            assert {child.type for child in token.children or []} <= {"text", "text_special"}
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


def latex_cells(text: str) -> list[list[str]]:
    """The table of a LaTeX document, with its escapes undone."""
    body = text.split("\\toprule")[1].split("\\bottomrule")[0].replace("\\midrule", "")
    rows = [line.removesuffix(" \\\\") for line in body.strip().split("\n") if line.strip()]
    return [[plain(cell) for cell in re.split(r"(?<!\\) & ", row)] for row in rows]


def plain(text: str) -> str:
    # Hyphens that are kept apart come last: until then they are no dash.
    names = {
        "\\textdagger{}": "†", "\\textquotesingle{}": "'", "--": "–", "\\textless{}": "<",
        "\\textgreater{}": ">", "\\textbar{}": "|", "\\textquotedbl{}": '"', "$\\times$": "×",
        "\\textasciitilde{}": "~", "\\textasciicircum{}": "^", "\\textasciigrave{}": "`",
        "\\textdegree{}": "°", "-{}-": "--", "\\textbackslash{}": "\0",
    }  # fmt: skip
    for name, character in names.items():
        text = text.replace(name, character)
    return re.sub(r"\\([#$%&_{}])", r"\1", text).replace("\0", "\\")


def test_markdown_and_latex_show_the_same_table(frame: pd.DataFrame) -> None:
    markdown, latex = markdown_cells(render(frame, "md")), latex_cells(render(frame, "latex"))
    assert markdown == latex
    assert len(markdown) == 1 + len(frame)
    assert {len(row) for row in markdown} == {len(frame.attrs["columns"])}
    headings = markdown[0]
    first = dict(zip(headings, markdown[1], strict=True))
    assert first["figures"] == "measured"
    assert first["model"] == "elevit"
    assert float(first["median (ms)"]) == pytest.approx(frame.loc[0, "median_ms"], rel=1e-3)
    low, high = map(float, first["95 % interval (ms)"].split("–"))
    assert low < float(first["median (ms)"]) < high
    assert first["speed vs torch"] == "2.00"
    assert first["size (MiB)"] == "90.0"
    assert first["status"] == "ok"


def test_rows_that_are_not_ok_show_it(frame: pd.DataFrame) -> None:
    cells = markdown_cells(render(frame, "md"))
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]
    unstable = next(r for r in rows if r["format"] == "tflite")
    assert unstable["median (ms)"].endswith(" †")
    assert unstable["status"] == "unstable"
    for bad in ("emulated", "mismatch"):
        found = next(r for r in rows if r["status"] == bad)
        assert {found[h] for h in found if "(ms)" in h} == {"–"}
    assert next(r for r in rows if r["status"] == "emulated")["device"] == "rpi5 (emulated)"
    assert "†" not in "".join(r["median (ms)"] for r in rows if r["status"] == "ok")


def test_an_interval_that_covers_less_says_so(frame: pd.DataFrame) -> None:
    cells = markdown_cells(render(frame, "md"))
    few = next(row for row in cells if "elevit_qkdot_fvdot" in row)
    assert any(re.fullmatch(r"12\d\.\d–12\d\.\d \(75 %\)", cell) for cell in few)


@pytest.mark.parametrize("format", ["md", "latex", "text"])
def test_notes_and_provenance_end_every_table(frame: pd.DataFrame, format: str) -> None:
    text = render(frame, format)
    flat = {"md": re.sub(r"\\(.)", r"\1", text), "latex": plain(text), "text": text}[format]
    ends = [flat.find(line) for line in (*frame.attrs["notes"], *frame.attrs["provenance"])]
    assert ends == sorted(ends)
    assert min(ends) > flat.rfind("elevit_qkdot_fvdot  ")
    assert "edgevit bench elevit --device rpi4" in flat


def test_csv_comes_back_whole(frame: pd.DataFrame) -> None:
    back = pd.read_csv(io.StringIO(render(frame, "csv")))
    assert list(back.columns) == list(COLUMNS)
    assert len(back) == len(frame)
    for column in ("median_ms", "interval_low_ms", "speed_ratio", "published_value"):
        pd.testing.assert_series_equal(back[column], frame[column], rtol=1e-15)
    measured = back[back["origin"] == "measured"]
    for column in ("cpu", "runtime", "created", "edgevit", "command", "threads", "device"):
        assert measured[column].notna().all(), column


def test_json_comes_back_whole(frame: pd.DataFrame) -> None:
    back = json.loads(render(frame, "json"), parse_constant=pytest.fail)
    assert [set(row) for row in back["rows"]] == [set(COLUMNS)] * len(frame)
    assert back["rows"][0]["median_ms"] == frame.loc[0, "median_ms"]
    assert back["rows"][0]["emulated"] is False
    assert back["rows"][0]["published"] is None
    mismatch = next(row for row in back["rows"] if row["status"] == "mismatch")
    assert mismatch["median_ms"] is None
    assert back["provenance"] == frame.attrs["provenance"]
    assert back["notes"] == frame.attrs["notes"]
    assert back["relative_to"] == "torch"


def test_text_without_a_width_folds_nothing(frame: pd.DataFrame) -> None:
    text = render(frame, "text")
    lines = text.splitlines()
    assert len(lines) == 2 + len(frame) + len(frame.attrs["notes"]) + len(frame.attrs["provenance"])
    assert lines[0].split()[:3] == ["figures", "model", "format"]
    assert not any(line.endswith(" ") for line in lines)
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("width", "published"),
    [(w, False) for w in (200, 120, 100, 80, 60, 50)] + [(w, True) for w in (200, 120, 100, 80)],
)
def test_narrow_terminals_keep_what_matters(width: int, published: bool) -> None:
    results = [
        make_result(),
        make_result(ms=80, format="torch"),
        make_result(ms=35, format="tflite", status="unstable", reason="drift"),
    ]
    frame = build_table(results, include="all", published=published, relative_to="torch")
    text = render(frame, "text", width=width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("40.02", "80.03", "35.01 †"):
        assert number in text
    for word in ("elevit", "onnx", "torch", "tflite", "unstable", "rpi4"):
        assert word in text, word
    assert ("0.14 s" in text) == published
    assert ("no room for: " in text) == (width < 250)
    assert "edgevit bench" in " ".join(text.split())


def test_numbers_are_never_folded_and_names_never_cut() -> None:
    name = "a_rather_long_name_of_a_model_that_needs_room"
    result = make_result(name=name, device="a device with a long name", ms=123.4)
    for width in (48, 56, 64):
        frame = build_table([result], published=True)
        text = render(frame, "text", width=width)
        assert significant(frame.loc[0, "median_ms"], 4) in text
        assert "measured" in text
        assert "…" not in text
        folded = [line[11:23].strip() for line in text.splitlines()[2:7]]
        assert "".join(folded).startswith(name)


def test_more_room_shows_more() -> None:
    frame = build_table([make_result()])
    widths = (60, 80, 120, 160, 300)
    headings = [render(frame, "text", width=w).splitlines()[0].split() for w in widths]
    assert sorted(headings, key=len) == headings
    assert len({len(h) for h in headings}) == len(widths)


def test_columns_that_tell_rows_apart_never_leave() -> None:
    one = render(build_table([make_result()]), "text", width=60)
    assert "threads" not in one.splitlines()[0]
    two = render(build_table([make_result(), make_result(threads=4)]), "text", width=60)
    assert "threads" in two.splitlines()[0]


def test_a_terminal_gets_colours_but_no_markup() -> None:
    result = make_result(name="[red]x[/red]", status="unstable", reason="[bold]why[/bold]")
    console = Console(file=io.StringIO(), force_terminal=True, width=150, color_system="standard")
    with console.capture() as capture:
        console.print(rich_table(build_table([result], include="all"), width=150))
    row = capture.get().splitlines()[2]
    assert "[red]x[/red]" in row
    assert "[bold]why[/bold]" in capture.get()
    assert "\x1b[33m" in capture.get()


@pytest.mark.parametrize("format", ["md", "latex"])
def test_nasty_names_are_shown_as_they_are(format: str) -> None:
    result = make_result(name=NASTY, device=NASTY, command=NASTY)
    text = render(build_table([result]), format)
    cells = (markdown_cells if format == "md" else latex_cells)(text)
    assert len(cells) == 2
    assert cells[1][0] == FLAT
    assert cells[1][3] == FLAT


def test_escaped_markdown_reads_as_the_text() -> None:
    shown = MarkdownIt("commonmark").enable("strikethrough").renderInline(escape_markdown(NASTY))
    assert html.unescape(shown) == FLAT
    assert "<b>" not in shown


def test_names_read_well_in_markdown() -> None:
    assert escape_markdown("elevit_qkdot_fvdot") == "elevit_qkdot_fvdot"
    assert escape_markdown("_private_ a_") == r"\_private\_ a\_"


def test_escaped_latex() -> None:
    assert escape_latex(r"a_b & 50% \x {y} #1 $2 ~ ^ 3°–4 ×") == (
        r"a\_b \& 50\% \textbackslash{}x \{y\} \#1 \$2 \textasciitilde{} \textasciicircum{} "
        r"3\textdegree{}--4 $\times$"
    )
    assert plain(escape_latex(NASTY)) == FLAT


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_empty_tables_say_so(format: str) -> None:
    left_out = build_table([make_result(status="failed", reason="it crashed")])
    for frame in (build_table([]), left_out):
        text = render(frame, format)
        if format == "json":
            assert json.loads(text)["rows"] == []
        elif format == "csv":
            assert text == ",".join(COLUMNS)
        else:
            assert "no result to show" in text
    if format != "csv":
        assert "it crashed" in render(left_out, format)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"), (0.0001234, 3, "0.000123"), (0.9996, 3, "1.00"), (9.996, 3, "10.0"),
        (12.345, 4, "12.35"), (99.95, 3, "100"), (123.4, 3, "123"), (123456.7, 4, "123457"),
        (-1.5, 2, "-1.5"), (1e-9, 2, "0.0000000010"),
    ],
)  # fmt: skip
def test_significant_digits(value: float, digits: int, text: str) -> None:
    assert significant(value, digits) == text


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        render(build_table([]), "latx")
    assert caught.value.nearest[0] == "latex"


def test_a_changed_frame_renders_too(frame: pd.DataFrame) -> None:
    fast = frame[frame["median_ms"] < 60]
    cells: list[list[Any]] = markdown_cells(render(fast, "md"))
    assert len(cells) == 1 + len(fast)

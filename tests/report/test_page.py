"""What a page holds, read without a browser."""

from __future__ import annotations

import builtins
import json
import re
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import Any

import pytest
from made_results import blocks, make_result

from edgevit.errors import MissingExtraError, UnavailableError
from edgevit.measure import Conditions, Result
from edgevit.report.columns import Column, pack
from edgevit.report.page import build_page
from edgevit.report.page_data import page_tables
from edgevit.report.plots import runtime, specifications

TIMES = {"median_ms", "interval_low_ms", "p90_ms", "images_per_s", "memory_mib", "load_ms"}


def block(name: str = "sima", n: int = 64, d: int = 16, **subject: Any) -> Result:
    return make_result(kind="block", name=f"{name}-n{n}-d{d}-h4", **subject)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return [
        make_result(),
        make_result(ms=36, format="tflite", status="unstable", reason="drift"),
        make_result(name="deit_small", ms=77, device="nano", emulated=True),
        make_result(name="swin", status="failed", reason="no room", samples=()),
        make_result(name="pvt", status="mismatch", verification="mismatch", reason="logits off"),
        block(),
        block(n=128),
    ]


@pytest.fixture(scope="module")
def page(results: list[Result]) -> str:
    return build_page(results, title="A & B", now=datetime(2026, 1, 3, 4, 5, tzinfo=timezone.utc))


def embedded(page: str) -> str:
    return page.split('<script type="application/json" id="data">')[1].split("</script>")[0]


def data_of(page: str) -> Any:
    return json.loads(embedded(page))


def column(table: Any, key: str) -> list[Any]:
    values = table["values"][key]
    if isinstance(values, list):
        return values
    return [None if i < 0 else values["words"][i] for i in values["index"]]


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_asks_nothing_of_the_network(page: str) -> None:
    for tag, attributes in Reader(page).tags:
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith("#") or value == "data:,", (tag, attributes)
    policy = next(a for t, a in Reader(page).tags if a.get("http-equiv"))["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "@import" not in page


def test_sections_follow_from_what_there_is(page: str, results: list[Result]) -> None:
    links = [a["href"] for t, a in Reader(page).tags if t == "a"][1:]
    assert links == [
        "#measured", "#cost", "#blocks", "#emulated", "#broken", "#published", "#devices", "#notes",
    ]  # fmt: skip
    ids = {a.get("id") for _, a in Reader(page).tags}
    assert {str(link)[1:] for link in links} <= ids
    bare = build_page([make_result(name="mine", params=None, macs=None)])
    assert [a["href"] for t, a in Reader(bare).tags if t == "a"][1:] == [
        "#measured", "#devices", "#notes",
    ]  # fmt: skip
    assert "#published" not in build_page(results[:1], published=False)


def test_what_is_not_measured_never_stands_with_what_is(results: list[Result]) -> None:
    tables = page_tables(results, published=True)
    assert column(tables["measured"], "model") == [
        "elevit", "elevit", "sima-n64-d16-h4", "sima-n128-d16-h4",
    ]  # fmt: skip
    assert column(tables["emulated"], "model") == ["deit_small"]
    assert column(tables["broken"], "model") == ["swin", "pvt"]
    assert column(tables["broken"], "reason") == ["no room", "logits off"]
    for name in ("emulated", "broken", "published"):
        assert not TIMES & tables[name]["values"].keys()
    text = json.dumps(tables["emulated"])
    assert "77" not in re.sub(r'"(file_sha256|created)".*?\]', "", text)
    assert "elevit" in column(tables["published"], "model")
    assert not any(key.startswith("published") for key in tables["measured"]["values"])


def test_figures_are_the_results(results: list[Result]) -> None:
    measured = page_tables(results, published=False)["measured"]
    statistics = results[0].statistics
    assert statistics is not None
    assert statistics.interval_ms is not None
    assert column(measured, "median_ms")[0] == pytest.approx(statistics.median_ms, rel=1e-5)
    assert column(measured, "interval_low_ms")[0] == pytest.approx(
        statistics.interval_ms[0], rel=1e-5
    )
    assert column(measured, "interval_high_ms")[0] == pytest.approx(
        statistics.interval_ms[1], rel=1e-5
    )
    assert column(measured, "unsteady") == [0, 1, 0, 0]
    assert column(measured, "status") == ["ok", "unstable", "ok", "ok"]


def test_columns_that_tell_rows_apart_go_with_the_name() -> None:
    def beneath(*shown: Result) -> list[str]:
        columns = page_tables(shown, published=False)["measured"]["columns"]
        assert all(c["minor"] for c in columns if c["beneath"])
        return [c["key"] for c in columns if c["beneath"]]

    assert beneath(make_result()) == []
    assert beneath(make_result(), make_result(threads=2, device="rpi5")) == ["device", "threads"]


def test_backend_and_options_are_columns_where_they_differ() -> None:
    def keys(*shown: Result) -> set[str]:
        columns = page_tables(shown, published=False)["measured"]["columns"]
        return {c["key"] for c in columns} & {"backend", "options"}

    assert keys(make_result()) == set()
    assert keys(make_result(), make_result(format="torch", backend="torch")) == set()
    assert keys(make_result(), make_result(backend="trtexec")) == {"backend"}
    unit = make_result(options={"compute_unit": "ane"})
    assert keys(make_result(), unit) == {"options"}
    measured = page_tables([make_result(), unit], published=False)["measured"]
    assert column(measured, "options") == [None, "compute unit ane"]


def test_every_row_carries_its_circumstances(results: list[Result]) -> None:
    before = {
        "governor": {"cpu0": "performance", "cpu1": "performance"},
        "frequency_khz": {"cpu0": {"current": 1_800_000, "max": 1_800_000}},
        "temperature_c": {"cpu": 51.2, "gpu": 49.0},
        "load_average": [0.25, 0.1, 0.1],
        "throttled": {"now": ["under-voltage"], "since_boot": []},
    }
    result = replace(results[0], conditions=Conditions(before, None))
    measured = page_tables([result], published=False)["measured"]
    told = {key: column(measured, key)[0] for key in data_of(build_page([result]))["details"]}
    assert told["conditions_before"] == (
        "governor performance; clock 1800 MHz; temperature 49 to 51.2 °C; load average 0.25; "
        "throttled under-voltage"
    )
    assert told["conditions_after"] is None
    assert told["runtime"] == "onnxruntime 1.31.1"
    assert told["settings"] == 'providers ["CPUExecutionProvider"]'
    assert told["protocol"] == "warmup runs 10; min runs 50; seed 7"
    assert told["verification_words"] == (
        "verified; largest difference 1e-06; tolerated 5e-05 of the output's scale"
    )
    assert (told["runs"], told["rounds"], told["interval_level"]) == (120, 10, "97.9 %")
    for key in ("command", "created", "file_sha256", "cpu", "os", "region", "warnings"):
        assert told[key], key


def test_devices_are_told_with_the_conditions_they_met() -> None:
    def at(load: float, celsius: float, **subject: Any) -> Result:
        conditions = {"load_average": [load], "temperature_c": {"cpu": celsius}}
        return replace(make_result(**subject), conditions=Conditions(conditions, None))

    devices = page_tables(
        [at(0.1, 40), at(0.5, 61, threads=2), make_result(device="xeon", emulated=True)],
        published=False,
    )["devices"]
    assert column(devices, "device") == ["rpi4", "xeon (emulated)"]
    assert column(devices, "results") == [2, 1]
    assert column(devices, "temperature") == ["40 to 61", None]
    assert column(devices, "load") == ["0.1 to 0.5", "0.1"]
    assert "governor" not in devices["values"]


def test_blocks_carry_their_sizes() -> None:
    rows = [block(n=256, d=64), make_result(kind="block", name="odd")]
    measured = page_tables(rows, published=False)["measured"]
    assert [column(measured, key)[0] for key in ("block", "n", "d", "h")] == ["sima", 256, 64, 4]
    assert column(measured, "n")[1] is None
    projected = make_result(kind="block", name="xca-n64-d16-h4-proj")
    assert column(page_tables([projected], published=False)["measured"], "rest") == ["-proj"]


def test_the_newest_of_duplicates_counts_and_is_said_to() -> None:
    old = make_result(ms=90, created="2025-12-31T00:00:00+00:00")
    page = build_page([old, make_result()])
    assert column(data_of(page)["tables"]["measured"], "median_ms") == [pytest.approx(40, rel=0.01)]
    assert "1 older result of the same rows left out." in page


NASTY = "</script><script>alert(1)</script><!-- \u2028 & <b>"


def test_names_can_break_nothing() -> None:
    page = build_page([make_result(name=NASTY, command=NASTY, device=NASTY)], title=NASTY)
    assert NASTY not in page
    assert not set("<>&\u2028") & set(embedded(page))
    assert column(data_of(page)["tables"]["measured"], "model") == [NASTY]
    assert [t for t, _ in Reader(page).tags].count("script") == 3
    assert "<b>" not in page.split("<body>")[1].split('<script type="application/json"')[0]


def test_the_title_and_the_time_are_told(page: str) -> None:
    assert "<title>A &amp; B</title>" in page
    assert "2026-01-03 04:05 UTC" in page
    assert "7 results of 6 models and blocks on nano, rpi4; 2026-01-02" in page


def test_no_results_are_no_page() -> None:
    with pytest.raises(UnavailableError, match="no results to show"):
        build_page([])


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "vl_convert":
            raise ImportError(name)
        return real(name, *rest)

    for made in (runtime, specifications):
        made.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="vl_convert") as caught:
        build_page([make_result()])
    assert caught.value.hint == 'pip install "edgevit[report]"'


def test_packing_keeps_words_once_and_rounds_numbers() -> None:
    rows = [{"a": "x", "b": 1.23456789}, {"a": "y", "b": None}, {"a": "x"}]
    packed = pack(rows, [Column("a", "A"), Column("b", "B", "number"), Column("c", "C")], ["d"])
    assert packed["values"] == {
        "a": {"words": ["x", "y"], "index": [0, 1, 0]},
        "b": [1.23457, None, None],
        "d": [None, None, None],
    }
    assert [head["key"] for head in packed["columns"]] == ["a", "b"]
    assert packed["size"] == 3


def test_many_commands_are_counted() -> None:
    many = [make_result(name=f"m{i}", command=f"edgevit bench m{i}") for i in range(35)]
    page = build_page(many)
    assert page.count("<li>measured on rpi4") == 30
    assert "5 more; every row has its own." in page


def test_samples_of_one_run_need_no_interval() -> None:
    single = make_result(samples=blocks(rounds=1, runs=1), status="unstable")
    measured = page_tables([single], published=False)["measured"]
    assert "interval_low_ms" not in measured["values"]
    assert column(measured, "interval_level") == [None]

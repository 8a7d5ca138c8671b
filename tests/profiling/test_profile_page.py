"""Profiles on the page: as data, and drawn in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from edgevit.measure.profile import OpTime, Profile, Roof
from edgevit.measure.record import Context, Device, Subject, Verification
from edgevit.report.page import build_page
from edgevit.report.profile_data import REST, newest_profiles, profile_plots, profile_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND")


def op(name: str, kind: str, ms: float, flops: int) -> OpTime:
    ns = (round(ms * 1e6),) * 3
    return OpTime(name, name, kind, "blocks.0", "name", (), ((4,),), ((4,),), flops, 32, ns)


def make_profile(name: str, *, device: str = "rpi4", emulated: bool = False) -> Profile:
    kinds = ["product", "softmax", "activation", "reshape", "copy"]
    ops = [op(f"Op{i}", kinds[i % 5], 10 - i, 0 if i % 5 > 2 else 1000 * (i + 1)) for i in range(9)]
    return Profile(
        context=Context("2026-01-02T00:00:00+00:00", "0", "edgevit profile", {},
                        Device(device, emulated=emulated)),
        subject=Subject("model", name, "onnx", "onnxruntime", "fp32", 1, 1, ()),
        verification=Verification("verified"),
        method="onnxruntime's profiler",
        ops=tuple(ops),
        plain_ns=(50_000_000,),
        profiled_ns=(60_000_000,),
        roof=Roof(4e9, 1e9, 1, {"flops": "f", "bytes": "b"}, "2026-01-02T00:00:00+00:00"),
    )  # fmt: skip


PROFILES = [make_profile("tiny"), make_profile("small"), make_profile("far", emulated=True)]


def test_segments_fill_every_bar() -> None:
    plots = profile_plots(PROFILES)
    for label in {segment["label"] for segment in plots["segments"]}:
        own = [segment for segment in plots["segments"] if segment["label"] == label]
        assert sum(segment["share"] for segment in own) == pytest.approx(1)
        assert own[-1]["series"] == REST
    assert len(plots["order"]) == 8


def test_emulated_devices_have_shares_and_no_times() -> None:
    plots = profile_plots(PROFILES)
    assert {p["words"].partition(" ")[0] for p in plots["points"]} == {"tiny", "small"}
    emulated = [s["words"] for s in plots["segments"] if s["label"].startswith("far")]
    assert emulated
    assert all("emulated" in words and "ms" not in words for words in emulated)
    table = profile_table([make_profile("far", emulated=True)])
    assert "plain_ms" not in table["values"]
    assert "plain_ms" in profile_table(PROFILES)["values"]
    assert [roof["name"] for roof in plots["roofs"]] == ["rpi4, threads 1"]


def test_the_newest_profile_counts() -> None:
    old = make_profile("tiny")
    new = replace(old, context=replace(old.context, created="2026-02-01T00:00:00+00:00"))
    assert newest_profiles([new, old]) == [new]


def test_a_profile_without_operators_is_in_the_table_alone() -> None:
    bare = replace(make_profile("bare"), ops=(), plain_ns=(), profiled_ns=())
    assert profile_plots([bare])["segments"] == []
    assert "bare" in build_page([], profiles=[bare])


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield started
    started.quit()


@pytest.mark.parametrize("width", [1280, 390])
def test_bars_and_roofline_are_drawn(driver: WebDriver, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(build_page([], profiles=PROFILES), encoding="utf-8")
    driver.set_window_size(width, 900)
    driver.get(file.as_uri())
    driver.execute_script("document.getElementById('profiles').scrollIntoView()")

    def marks(plot: str, kind: str) -> int:
        found = f'.plot[data-plot="{plot}"] .mark-{kind} path'
        return len(driver.find_elements(By.CSS_SELECTOR, found))

    WebDriverWait(driver, 20).until(lambda _: marks("operators", "rect") == 24)
    WebDriverWait(driver, 20).until(lambda _: marks("roofline", "symbol") == 6)
    assert marks("roofline", "line") == 1
    rows = driver.find_elements(By.CSS_SELECTOR, '[data-table="profiles"] tbody tr')
    assert len(rows) == 3
    inside = driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert inside
    assert driver.get_log("browser") == []

from __future__ import annotations

import platform
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import edgevit
from devices.base import Event
from edgevit.bundle import Bundle
from edgevit.errors import OptionError, UnavailableError, UnknownNameError
from edgevit.measure.results import read_results
from edgevit.source import block_source
from edgevit.verbs import count as verb
from edgevit.verbs.count import count, tolerance
from edgevit.verbs.counters import Callgrind, Qemu
from edgevit.zoo.counting import count_macs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("count")
    block = edgevit.BlockSpec("sima", 64, 32, 2)
    return edgevit.export(block, formats=["onnx"], output=folder)


def counting(
    monkeypatch: pytest.MonkeyPatch, totals: dict[int, int | None], events: list[Event]
) -> None:
    """Totals by runs in place of valgrind's."""
    monkeypatch.setattr(Callgrind, "method", "callgrind, made up")
    monkeypatch.setattr(verb, "_run", lambda entry, runs, *_: (totals[runs], events))


def test_one_inference_is_the_difference_of_the_runs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: Event = {"id": bundle.path.name + ".onnx"}
    events: list[Event] = [
        {**told, "event": "checked", "ok": True, "outputs": [], "reason": None},
        {**told, "event": "samples", "round": 0, "inner": 1, "ns": [9, 9], "finished": True},
        {"event": "done", "stopped": False},
    ]
    counting(monkeypatch, {100: 5_000_000, 200: 9_000_000}, events)
    (result,) = count([bundle], output=tmp_path)
    assert result.instructions is not None
    assert result.instructions.per_inference == 40_000
    assert result.status == "ok"
    assert result.samples_ns == ()  # times under valgrind are nobody's
    assert read_results(tmp_path) == [result]


def test_an_agent_that_fails_has_no_count(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    name = bundle.path.name + ".onnx"
    wrong: Event = {"event": "error", "id": name, "kind": "load", "message": "no such file"}
    counting(monkeypatch, {100: 1}, [wrong, {"event": "done", "stopped": False}])
    (result,) = count([bundle], output=None)
    assert (result.status, result.reason, result.instructions) == ("failed", "no such file", None)


def test_without_valgrind_it_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UnavailableError, match="not installed here") as caught:
        count([bundle], output=None)
    assert "apt-get install valgrind" in str(caught.value.hint)


def test_what_starts_differ_by_is_much_of_little() -> None:
    assert tolerance(4_000_000, 100, 4_000_000) == pytest.approx(0.01)
    assert tolerance(40_000_000, 100, 4_000_000) == pytest.approx(0.001)
    assert tolerance(400_000_000, 100, 4_000_000) == pytest.approx(0.001)
    assert tolerance(0, 100, 4_000_000) > 1  # nothing was counted: it shows nothing


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"counter": "perf"}, UnknownNameError, "perf"),
        ({"counter": "callgrind", "sysroot": "."}, OptionError, "--sysroot"),
        ({"sysroot": "."}, OptionError, "usr/bin/python3"),
        ({"sysroot": "nowhere"}, OptionError, "nowhere"),
    ],
)
def test_wrong_counters_and_systems_are_refused(
    bundle: Bundle, options: dict[str, str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        count([bundle], output=None, **options)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of machines that are not arm64")
def test_qemu_needs_an_arm64_python(bundle: Bundle) -> None:
    with pytest.raises(UnavailableError, match="x86_64") as caught:
        count([bundle], output=None, counter="qemu")
    assert "--sysroot" in str(caught.value.hint)


def arm64_system(folder: Path) -> Path:
    (folder / "usr" / "bin").mkdir(parents=True)
    (folder / "usr" / "bin" / "python3").write_text("")
    return folder


def test_without_qemu_or_a_compiler_it_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Qemu(arm64_system(tmp_path / "system"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UnavailableError, match="qemu's user-mode") as caught:
        count([bundle], output=None, sysroot=tmp_path / "system")
    assert "qemu-user" in str(caught.value.hint)
    monkeypatch.setattr(Qemu, "_version", lambda _: "7.2")
    with pytest.raises(UnavailableError, match="no compiler"):
        counter.interpreter(tmp_path)


@pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("cc")), reason="no qemu-user or compiler"
)
def test_qemu_sees_one_processor_and_the_systems_folders(tmp_path: Path) -> None:
    system = arm64_system(tmp_path / "system")
    for name in ("lib", "sys", "proc"):
        (system / name).mkdir()
    made = tmp_path / "made"
    made.mkdir()
    words = shlex.split(Qemu(system).interpreter(made).read_text().splitlines()[1])
    assert words[-2:] == [str(system / "usr/bin/python3"), "$@"]
    seen = Path(words[words.index("-L") + 1])
    assert (seen / "sys/devices/system/cpu/possible").read_text() == "0\n"
    assert "0xd08" in (seen / "proc/cpuinfo").read_text()
    assert (seen / "lib").resolve() == system / "lib"
    assert Path(words[words.index("-plugin") + 1]).exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_an_inference_executes_what_its_products_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a lock that nobody else waits for
    block = edgevit.BlockSpec("sima", 128, 32, 2)
    bundle: Any = edgevit.export(block, formats=["onnx"], output=tmp_path / "export")
    (result,) = count([bundle], output=None)
    assert result.verification.status == "verified"
    assert result.instructions is not None
    each = result.instructions.per_inference
    assert result.instructions.tolerance == tolerance(each, 100, Callgrind().varies)
    source = block_source(block)
    macs = count_macs(source.module, source.inputs)
    # No processor multiplies more than 16 pairs an instruction; far more instructions than products
    # would be those of the start.
    assert macs / 16 < each < 2 * macs

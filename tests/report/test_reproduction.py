from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_results import make_result
from scipy.stats import spearmanr

from edgevit.errors import UnavailableError, UnknownNameError
from edgevit.measure import Memory, Result
from edgevit.report.protocols import PROTOCOLS, Protocol, find_protocol
from edgevit.report.published import load_published
from edgevit.report.reproduction import Reproduction, build_reproduction, spearman
from edgevit.report.reproduction_render import render_reproduction
from edgevit.verbs.suites import find_suite
from edgevit.zoo.registry import list_models

#: EfficientViT's own order, at batch 16.
SPEEDS = {f"efficientvit_m{size}": 40.0 * 2**size for size in range(6)}


def efficientvit(**changed: float) -> list[Result]:
    speeds = SPEEDS | changed
    return [make_result(name=name, ms=ms, batch=16) for name, ms in speeds.items()]


def made(results: list[Result], name: str = "efficientvit-table2") -> Reproduction:
    return build_reproduction(find_protocol(name), results)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_every_subject_can_be_built_and_was_printed(protocol: Protocol) -> None:
    blocks = {s.label for s in find_suite("sima-table3").subjects if not isinstance(s, str)}
    printed = {f.model for f in load_published(paper=protocol.paper) if f.table == protocol.table}
    for name in protocol.subjects:
        assert name in blocks or name in list_models(), name
        assert name in printed, name
    for claim in protocol.claims:
        assert {claim.better, claim.than} <= set(protocol.subjects)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_every_claim_is_what_the_paper_printed(protocol: Protocol) -> None:
    results = [make_result(name=protocol.subjects[0])]
    for claim in build_reproduction(protocol, results).claims:
        assert claim.published, claim
        assert min(claim.published.values()) > 1, claim


def test_the_five_papers_have_a_protocol() -> None:
    assert {p.paper for p in PROTOCOLS.values()} == {f.paper for f in load_published()}
    assert find_protocol("efficientvit-table2").batch == 16
    assert find_protocol("sima-table3").runs == 1000
    with pytest.raises(UnknownNameError, match="sima-tabel3") as caught:
        find_protocol("sima-tabel3")
    assert "sima-table3" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4], [4, 2, 2, 1]), ([1.5, 1.5, 3, 9], [7, 2, 5, 5])],
)
def test_rank_correlation_is_scipys(first: list[float], second: list[float]) -> None:
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_an_order_that_is_kept() -> None:
    found = made(efficientvit())
    assert [c.heading for c in found.columns] == [
        "NVIDIA V100 (images/s)",
        "Intel Xeon E5-2690 v4 @ 2.60 GHz, PyTorch, batch 16 (images/s)",
        "Intel Xeon E5-2690 v4 @ 2.60 GHz, ONNX, batch 16 (images/s)",
    ]
    for order in found.orderings:
        assert (order.rows, order.correlation, order.agreeing, order.pairs) == (6, 1.0, 15, 15)
    verdicts = [claim.verdict for claim in found.claims]
    assert verdicts == ["holds"] * 5 + ["not measured"] * 2
    assert found.claims[0].measured == pytest.approx(2, rel=0.01)
    assert [row.status for row in found.rows] == ["ok"] * 6 + ["missing"] * 2


def test_an_order_that_is_not() -> None:
    found = made(efficientvit(efficientvit_m1=35.0, efficientvit_m2=35.1))
    assert [claim.verdict for claim in found.claims[:3]] == [
        "does not hold", "no difference shown", "holds",
    ]  # fmt: skip
    assert found.orderings[0].agreeing == 13
    assert found.orderings[0].correlation is not None
    assert found.orderings[0].correlation < 1


def test_ratios_are_of_speed_per_image() -> None:
    heading = "Intel Xeon E5-2690 v4 @ 2.60 GHz, ONNX, batch 16 (images/s)"
    row = made(efficientvit()).rows[0]
    assert row.published[heading] == "340.1"
    assert row.images_per_s == pytest.approx(400, rel=0.01)
    assert row.ratios[heading] == pytest.approx(400 / 340.1, rel=0.01)
    elevit = made([make_result(name="elevit", ms=7.0, batch=1)], "elevit-table1").rows[-1]
    # 0.14 s for 128 images is 1.09 ms an image.
    (ratio,) = elevit.ratios.values()
    assert ratio == pytest.approx(0.14e3 / 128 / 7, rel=0.01)


def test_memory_of_vision_xformers() -> None:
    def weighed(name: str, batch: int, mib: int) -> Result:
        memory = Memory(0, mib * 2**20)
        return replace(make_result(name=name, batch=batch), memory=memory)

    results = [weighed("vit_cifar10", 64, 7000), weighed("vil_cifar10", 64, 1000)]
    results += [weighed("vit_cifar10", 1, 200), weighed("vil_cifar10", 1, 210)]
    found = made(results, "vix-table1")
    headings = {c.metric: c.heading for c in found.columns}
    gpu, size = headings["gpu_memory"], headings["size"]
    assert found.rows[0].ratios[gpu] == pytest.approx(7000 / 14.1 / 1024)
    assert found.rows[0].ratios[size] == pytest.approx(200 / 209.39)
    orders = {o.heading: o.agreeing for o in found.orderings}
    assert orders == {gpu: 1, size: 0}
    claim = next(c for c in found.claims if c.better == "vil_cifar10")
    assert (claim.verdict, claim.measured) == ("holds", 7.0)
    assert claim.published[gpu] == pytest.approx(14.1 / 2.2)


def test_emulated_and_broken_rows_have_no_figures() -> None:
    emulated = make_result(name="efficientvit_m0", emulated=True, batch=16)
    wrong = make_result(
        name="efficientvit_m1", status="mismatch", verification="mismatch", batch=16
    )
    found = made([emulated, wrong])
    assert [row.median_ms for row in found.rows] == [None] * 8
    assert found.rows[0].ratios == {}
    assert found.orderings == ()
    assert {claim.verdict for claim in found.claims} == {"not measured"}


def test_a_claim_on_an_unsteady_row_is_marked() -> None:
    results = efficientvit()
    results[0] = replace(results[0], status="unstable", reason="a fan")
    found = made(results)
    assert [claim.steady for claim in found.claims[:2]] == [False, True]
    assert "holds †" in render_reproduction(found)
    assert "unstable: efficientvit_m0: a fan" in render_reproduction(found)


def test_results_of_other_models_alone_are_refused() -> None:
    with pytest.raises(UnavailableError, match="none of the results"):
        made([make_result(name="elevit")])


def test_all_formats_tell_the_same() -> None:
    found = build_reproduction(
        find_protocol("efficientvit-table2"), efficientvit(), ["batch 1 in place of 16"]
    )
    text, markdown = (render_reproduction(found, name) for name in ("text", "md"))
    for shown in (text, markdown):
        assert "batch 1 in place of 16" in shown
        assert "340.1" in shown
        assert "15 of 15" in shown
        assert "edgevit bench elevit" in shown
        assert "missing: efficientvit" in shown.replace("\\", "")
    data = json.loads(render_reproduction(found, "json"))
    assert data["protocol"]["batch"] == 16
    assert data["orderings"][0]["correlation"] == 1.0
    assert data["claims"][0]["verdict"] == "holds"
    with pytest.raises(UnknownNameError):
        render_reproduction(found, "pdf")

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

import profiles
from edgevit.report.published import COLUMNS, load_published
from edgevit.verbs.suites import find_suite
from edgevit.zoo.registry import list_blocks, list_models, model_info

FOLDER = Path(profiles.__file__).parent / "published"
FILES = sorted(FOLDER.glob("*.csv"))
UNITS = {
    "latency": {"s", "ms"},
    "throughput": {"images/s"},
    "params": {"M", "count"},
    "flops": {"M", "G"},
    "top1": {"%"},
    "top5": {"%"},
    "gpu_memory": {"GB"},
    "size": {"MB"},
}
#: Rows of each table times columns with figures, less the dashes.
FIGURES = {
    ("elevit", "Table 1"): 12 * 3,
    ("elevit", "Table 2"): 8 * 3,
    ("sima", "Table 1"): 29 * 3,
    ("sima", "Table 2"): 9 * 3,
    ("sima", "Table 3"): 7 * 3,
    ("vision-xformers", "Table 1"): 12 * 5,
    ("vision-xformers", "Table 2"): 12 * 5,
    ("vision-xformers", "Table 3"): 12 * 5,
    ("vision-xformers", "Table 4"): 12 * 5,
    ("vision-xformers", "Table 5"): 6 * 5,
    ("vision-xformers", "Table 6"): 8 * 3,
    ("lavit", "Table 2"): 33 * 4,
    ("lavit", "Table 5"): 14 * 4,
    ("efficientvit", "Table 2"): 25 * 7 - 12,
    ("efficientvit", "Table 3"): 7 * 6,
    ("efficientvit", "Table 6"): 11 * 3,
    ("efficientvit", "Table 7"): 2 * 8,
}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_file_has_the_columns_and_no_loose_ends(file: Path) -> None:
    with file.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))
    assert tuple(lines[0]) == COLUMNS
    assert {len(line) for line in lines} == {len(COLUMNS)}
    assert all(cell == cell.strip() for line in lines for cell in line)
    assert {line[0] for line in lines[1:]} == {file.stem}


def test_there_is_a_file_for_each_paper() -> None:
    papers = {"elevit", "sima", "vision-xformers", "lavit", "efficientvit"}
    assert {file.stem for file in FILES} == papers


PATTERNS = {
    "value": r"\d+(\.\d+)?",
    "table": r"Table \d",
    "batch": r"\d*",
    "threads": r"\d*",
    "input": r"(\d+|H=\d+ N=\d+ D=\d+|)",
    "model": r"([a-z0-9_]+(\+[a-z0-9_]+|-n\d+-d\d+-h\d+(-order_(nn|dd))?)?|)",
    "paper_name": r".+",
}


def test_every_figure_is_well_formed() -> None:
    for figure in load_published():
        for column, pattern in PATTERNS.items():
            assert re.fullmatch(pattern, getattr(figure, column)), (column, figure)
        assert figure.number > 0, figure
        assert figure.unit in UNITS[figure.metric], figure
        if figure.metric.startswith("top"):
            assert figure.number <= 100, figure
            assert figure.dataset, figure


def test_no_figure_is_there_twice() -> None:
    keys = Counter(
        (f.paper, f.table, f.paper_name, f.dataset, f.input, f.device, f.runtime, f.metric)
        for f in load_published()
    )
    assert [key for key, count in keys.items() if count > 1] == []


def test_the_tables_are_whole() -> None:
    assert Counter((f.paper, f.table) for f in load_published()) == FIGURES


@pytest.mark.parametrize("metric", ["latency", "throughput", "gpu_memory"])
def test_what_depends_on_a_device_names_it(metric: str) -> None:
    for f in load_published():
        if f.metric == metric:
            assert f.device or "device and batch not stated" in f.note, f


#: Models of the papers that edgevit does not build yet.
NOT_BUILT = {"levit_128s"}


def test_models_and_blocks_are_called_as_edgevit_calls_them() -> None:
    names = {f.model.partition("-")[0] for f in load_published() if f.model}
    assert names - {*list_models(), *list_blocks()} <= NOT_BUILT


def test_every_figure_of_lavits_plug_ins_has_its_model_and_the_model_its_figure() -> None:
    keys = {"flops": "flops_g", "top1": "top1"}
    for f in load_published(paper="lavit"):
        if f.table == "Table 5":
            assert f.model, f
            info = model_info(f.model)
            if info.table == "Table 5":
                assert info.published[keys[f.metric]] == f.number, f


def test_the_other_backbones_of_the_papers_are_named_where_they_stand() -> None:
    stands = {"Swin-T": "swin_tiny", "Swin-S": "swin_small", "DeepViT-S": "deepvit_small"}
    named = {(f.paper_name, f.model) for f in load_published() if f.paper_name in stands}
    assert named == set(stands.items())


def test_a_block_is_called_as_the_results_of_its_suite_are() -> None:
    in_suite = {subject.label for subject in find_suite("sima-table3").subjects}
    assert {f.model for f in load_published(paper="sima") if f.table == "Table 3"} == in_suite


def test_a_block_stands_at_the_shape_that_was_printed() -> None:
    specs = {subject.label: subject for subject in find_suite("sima-table3").subjects}
    for f in load_published(paper="sima"):
        if f.table == "Table 3":
            spec = specs[f.model]
            assert f.input == f"H={spec.heads} N={spec.tokens} D={spec.head_dim}"
            assert spec.options.get("order", "nn" if spec.name == "softmax" else "dd") == (
                "nn" if spec.tokens > spec.head_dim else "dd"
            )


def published(model: str, metric: str, **where: str) -> set[str]:
    return {
        f.value
        for f in load_published(model)
        if f.metric == metric and all(getattr(f, key) == value for key, value in where.items())
    }


@pytest.mark.parametrize(
    ("model", "latency", "params", "top1"),
    [
        ("swiftformer_l3", "0.2", "27.5", ("72.6", "95.3", "59.9")),
        ("efficientformerv2_l", "0.47", "25.6", ("79.2", "95.8", "66.3")),
        ("efficientformerv2_l+elementwise", "0.23", "19.5", ("81.1", "95.8", "64.2")),
        ("elevit", "0.14", "23.4", ("79.7", "96.1", "64.8")),
    ],
)
def test_table_1_of_elevit(
    model: str, latency: str, params: str, top1: tuple[str, str, str]
) -> None:
    where = {"table": "Table 1"}
    assert published(model, "latency", **where, batch="128", unit="s") == {latency}
    assert published(model, "params", **where) == {params}
    for dataset, value in zip(("CIFAR100", "CIFAR10", "TinyImagenet200"), top1, strict=True):
        assert published(model, "top1", **where, dataset=dataset) == {value}


@pytest.mark.parametrize(
    ("model", "at_64", "at_224", "latency"),
    [
        ("elevit_qkdot_fvdot", "90.49", "94.87", "0.16"),
        ("elevit_qkdot", "91.03", "94.94", "0.15"),
        ("elevit_fvdot", "90.82", "94.96", "0.15"),
        ("elevit", "91.02", "95.22", "0.14"),
        ("elevit_qkdot_fvdot_noff", "90.78", "94.67", "0.16"),
        ("elevit_qkdot_noff", "91.54", "94.65", "0.15"),
        ("elevit_fvdot_noff", "90.78", "94.38", "0.15"),
        ("elevit_noff", "91.31", "94.7", "0.14"),
    ],
)
def test_table_2_of_elevit(model: str, at_64: str, at_224: str, latency: str) -> None:
    assert published(model, "top1", table="Table 2", input="64") == {at_64}
    assert published(model, "top1", table="Table 2", input="224") == {at_224}
    assert published(model, "latency", table="Table 2", batch="128") == {latency}


@pytest.mark.parametrize(
    ("model", "metric", "where", "value"),
    [
        ("efficientvit_m0", "throughput", {"runtime": "ONNX"}, "340.1"),
        ("efficientvit_m5", "throughput", {"device": "NVIDIA V100", "table": "Table 2"}, "10621"),
        ("efficientvit_m5_384", "flops", {}, "1486"),
        ("efficientvit_m5_512", "top5", {}, "95.5"),
        ("efficientvit_m2", "throughput", {"runtime": "PyTorch"}, "121.2"),
        ("lavit_s", "throughput", {}, "1546"),
        ("lavit_b", "params", {}, "39.6"),
        ("sima-n64-d256-h8-order_dd", "latency", {"device": "Apple M1"}, "20.5"),
        ("softmax-n256-d64-h8", "latency", {"device": "Apple M1"}, "35.8"),
        ("deit_small+sima_relu", "top1", {}, "79.6"),
        ("xcit_tiny_24_p16+sima", "flops", {}, "2.3"),
        ("hybrid_vin_cifar10", "params", {}, "623706"),
        ("cvn_tinyimagenet", "top1", {}, "45.47"),
        ("levip_cifar10", "params", {}, "662410"),
        ("hybrid_rope_vit_cifar10", "gpu_memory", {}, "14.5"),
    ],
)
def test_figures_of_the_other_papers(
    model: str, metric: str, where: dict[str, str], value: str
) -> None:
    assert published(model, metric, **where) == {value}


def test_loading_narrows() -> None:
    everything = load_published()
    assert [f for f in everything if f.model == "elevit"] == load_published("EleViT")
    assert {f.paper for f in load_published(paper="sima")} == {"sima"}
    assert load_published("resnet") == []
    assert {f.paper for f in load_published("deit_small", paper="lavit")} == {"lavit"}
    assert everything[0].source == "efficientvit, Table 2"

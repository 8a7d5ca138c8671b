"""The ONNX format: what is asked for is what is in the file, and onnxruntime computes the same."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import onnx
import pytest
import torch
from program_kit import ROUNDING, block, elevit, error_of, program_of, write
from torch import nn

import exporters.onnx
from edgevit.capture import capture
from edgevit.errors import ConversionError, MissingExtraError, OptionError
from edgevit.tensorspec import TensorSpec
from exporters.base import CannotVerifyError
from exporters.onnx import ERA_IR, OnnxExporter, OnnxOptions

EXPORTER = OnnxExporter()
BLOCKS = [(n, p) for n in ("elementwise", "softmax") for p in (True, False)]


def read(folder):
    return onnx.load(folder / "model.onnx", load_external_data=False)


def opset_of(model):
    return {entry.domain: entry.version for entry in model.opset_import}[""]


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20, 21, 23])
def test_elevit_agrees_at_the_opset_asked_for(opset, tmp_path, capfd):
    program = elevit()
    artifact = write(EXPORTER, program, tmp_path, opset=opset)
    model = read(tmp_path)
    assert opset_of(model) == artifact.facts["opset"] == opset
    assert model.ir_version == artifact.facts["ir_version"] == ERA_IR[opset]
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "projections"), BLOCKS)
@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("dynamic", [False, True])
def test_blocks_agree(name, projections, opset, dynamic, tmp_path):
    program = block(name, projections=projections, dynamic=dynamic)
    artifact = write(EXPORTER, program, tmp_path, opset=opset)
    assert artifact.facts["exporter"] == "torchscript"
    assert [i.name for i in read(tmp_path).graph.input] == (
        ["x"] if projections else ["query", "key", "value"]
    )
    for runner in EXPORTER.load(artifact, tmp_path):
        assert error_of(runner, program) <= ROUNDING


@pytest.mark.slow
def test_the_real_elevit_agrees(tmp_path):
    program = elevit(64, stem=(32, 64), widths=(128, 256, 512), depths=(4, 8, 8))
    artifact = write(EXPORTER, program, tmp_path)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


@pytest.mark.parametrize("simplify", [False, True])
def test_a_dynamic_batch_takes_one_and_five(simplify, tmp_path):
    program = elevit(dynamic=True)
    artifact = write(EXPORTER, program, tmp_path, simplify=simplify)
    assert artifact.facts["dynamic_batch"] is True
    graph = read(tmp_path).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    runners = EXPORTER.load(artifact, tmp_path)
    assert len(runners) == 2
    for runner in runners:
        assert error_of(runner, program, batch=1) <= ROUNDING
        assert error_of(runner, program, batch=5) <= ROUNDING


def test_a_fixed_batch_is_fixed(tmp_path):
    program = elevit(batch=2)
    artifact = write(EXPORTER, program, tmp_path)
    first = read(tmp_path).graph.input[0].type.tensor_type.shape.dim[0]
    assert first.dim_value == 2
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


def test_the_second_runner_notices_rows_that_leak_into_each_other(tmp_path):
    program = program_of(lambda m, x: x - x.mean(0, keepdim=True) * 0.5, (1, 4), dynamic=True)
    artifact = write(EXPORTER, program, tmp_path)
    alone, among_others = EXPORTER.load(artifact, tmp_path)
    assert error_of(alone, program) <= ROUNDING
    assert error_of(among_others, program) > 0.1


def test_several_outputs_keep_their_names_and_order(tmp_path):
    program = program_of(
        lambda m, x: (m.head(x), x.mean(1), x * 2), (1, 4, 8), dynamic=True, head=nn.Linear(8, 3)
    )
    artifact = write(EXPORTER, program, tmp_path)
    names = [o.name for o in read(tmp_path).graph.output]
    assert names == [s.name for s in artifact.outputs] == ["output_0", "output_1", "output_2"]
    for runner in EXPORTER.load(artifact, tmp_path):
        assert error_of(runner, program) <= ROUNDING


@pytest.mark.parametrize("simplify", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_input_that_nothing_reads_stays(simplify, dynamic, tmp_path):
    class Second(nn.Module):
        def forward(self, first, second, third):
            return second * 2

    specs = [TensorSpec(name, (1, 4)) for name in ("first", "second", "third")]
    program = capture(Second(), specs, dynamic_batch=dynamic)
    artifact = write(EXPORTER, program, tmp_path, simplify=simplify, exporter="torchscript")
    assert [i.name for i in read(tmp_path).graph.input] == ["first", "second", "third"]
    for runner in EXPORTER.load(artifact, tmp_path):
        assert error_of(runner, program) <= ROUNDING


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opset", "ir_version"), [(15, 8), (13, 8), (17, 10), (20, 10)])
def test_the_ir_version_is_the_one_asked_for(opset, ir_version, tmp_path):
    program = block("softmax", projections=True)
    artifact = write(EXPORTER, program, tmp_path, opset=opset, ir_version=ir_version)
    assert read(tmp_path).ir_version == artifact.facts["ir_version"] == ir_version
    assert opset_of(read(tmp_path)) == opset
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


@pytest.mark.parametrize(
    ("approximate", "options", "opset", "operators"),
    [
        ("tanh", {}, 20, {"Gelu"}),
        ("tanh", {"ir_version": 8}, 17, {"Tanh"}),
        ("tanh", {"opset": 17}, 17, {"Tanh"}),
        ("none", {}, 17, {"Erf"}),
    ],
)
def test_a_gelu_of_the_tanh_form_is_one_operator_where_it_can_be(
    approximate, options, opset, operators, tmp_path
):
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(approximate=approximate))
    program = capture(model.eval(), [TensorSpec("x", (1, 4, 8))])
    artifact = write(EXPORTER, program, tmp_path, **options)
    assert artifact.facts["opset"] == opset_of(read(tmp_path)) == opset
    assert artifact.facts["operators"].keys() & {"Gelu", "Tanh", "Erf"} == operators
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


def test_simplify_makes_the_file_smaller_and_agrees(tmp_path):
    program = elevit()
    (tmp_path / "plain").mkdir()
    plain = write(EXPORTER, program, tmp_path / "plain")
    simple = write(EXPORTER, program, tmp_path, simplify=True)
    assert simple.facts["simplified"] is True
    assert simple.facts["nodes"] < plain.facts["nodes"]
    assert "onnxsim" in simple.versions
    assert "onnxsim" not in plain.versions
    (runner,) = EXPORTER.load(simple, tmp_path)
    assert error_of(runner, program) <= ROUNDING


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"opset": 12}, "opset: expected a whole number from 13 to 23, got 12"),
        ({"opset": 24}, "opset: expected a whole number from 13 to 23, got 24"),
        ({"opset": True}, "opset"),
        ({"opset": "17"}, "opset"),
        ({"opset": 17, "ir_version": 7}, "ir_version: expected a whole number from 8 to 13, got 7"),
        ({"opset": 20, "ir_version": 8}, "ir_version: expected a whole number from 9 to 13, got 8"),
        ({"ir_version": 14}, "ir_version"),
        ({"simplify": "yes"}, "simplify: expected true or false"),
        ({"attention": 1}, "attention: expected true or false, got 1"),
        ({"attention": True, "opset": 22}, "opset: expected 23, the first with one operator"),
        ({"attention": True, "ir_version": 10}, "from 11 to 13, got 10"),
        ({"exporter": "script"}, "exporter: expected auto or torchscript or dynamo, got 'script'"),
    ],
)
def test_impossible_options_are_refused(options, named):
    with pytest.raises(OptionError) as caught:
        OnnxOptions(**options)
    assert named in str(caught.value)


def test_an_old_ir_version_names_the_opset_s_own():
    with pytest.raises(OptionError) as caught:
        OnnxOptions(opset=19, ir_version=8)
    assert caught.value.hint == "opset 19 came with IR version 9"


def test_simplify_without_onnxsim_names_the_extra(monkeypatch):
    monkeypatch.setattr(exporters.onnx, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        OnnxOptions(simplify=True)
    assert caught.value.packages == ("onnxsim",)
    assert caught.value.hint == 'pip install "edgevit[onnx]"'


# -- the file --------------------------------------------------------------------------------------


def test_one_file_with_everything_in_it(tmp_path):
    artifact = write(EXPORTER, elevit(), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]
    assert artifact.facts["size_bytes"] == (tmp_path / "model.onnx").stat().st_size
    model = read(tmp_path)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    operators = [node.op_type for node in model.graph.node]
    assert artifact.facts["nodes"] == len(operators)
    assert artifact.facts["operators"]["Softmax"] == operators.count("Softmax") == 3
    assert artifact.versions.keys() == {"torch", "onnx", "onnxruntime"}
    assert (artifact.backend, artifact.precision) == ("onnxruntime", "fp32")
    assert artifact.layouts == {"image": "NCHW"}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_nodes_are_called_by_their_layer(exporter, tmp_path):
    program = elevit()
    program = program.rewritten(program.graph_module())  # as it is after a pass
    write(EXPORTER, program, tmp_path, exporter=exporter, opset=18)
    names = [node.name for node in read(tmp_path).graph.node]
    assert len(names) == len(set(names))
    attention = "/stages.2.1.1.inner"
    assert {f"{attention}/Softmax", f"{attention}/Transpose", f"{attention}/Mul_2"} <= set(names)
    for layer in ("/stem.0.", "/stages.1.1.1.inner.query."):  # the convolution or its BatchNorm
        assert any(name.startswith(layer) and name.endswith("/Conv") for name in names)
    layers = {"stem", "stages", "norm", "head"}
    tops = [name.split("/")[1].partition(".")[0] for name in names if name.count("/") > 1]
    assert set(tops) == layers
    assert len(tops) >= len(names) - 3


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_the_file_does_not_tell_where_the_code_lay(exporter, tmp_path):
    write(EXPORTER, elevit(), tmp_path, exporter=exporter, opset=18)
    assert b"elevit.py" not in (tmp_path / "model.onnx").read_bytes()


# -- what cannot be --------------------------------------------------------------------------------


def spectrum(m, x):
    return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


class Mixer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def test_what_the_older_exporter_cannot_the_newer_one_writes(tmp_path, capfd):
    program = program_of(spectrum, (1, 4, 8), dynamic=True)
    artifact = write(EXPORTER, program, tmp_path, opset=18)
    assert artifact.facts["exporter"] == "dynamo"
    assert "onnxscript" in artifact.versions
    assert opset_of(read(tmp_path)) == 18
    assert read(tmp_path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for runner in EXPORTER.load(artifact, tmp_path):
        assert error_of(runner, program, batch=3) <= ROUNDING
    assert capfd.readouterr() == ("", "")


def test_an_operator_without_conversion_is_named_with_its_layer(tmp_path):
    program = program_of(lambda m, x: m.mix(x) + 1, (1, 4, 8), mix=Mixer(spectrum))
    with pytest.raises(ConversionError) as caught:
        write(EXPORTER, program, tmp_path, opset=15)
    assert "ONNX opset 15: cannot convert aten::fft_fft, used in mix" in str(caught.value)
    assert "write the layer without fft_fft" in caught.value.hint
    assert "the exporter wrote opset 18 where 15 was asked for" in caught.value.hint


def test_an_operator_that_neither_exporter_knows(tmp_path):
    program = program_of(lambda m, x: torch.linalg.pinv(x), (1, 4, 8))
    with pytest.raises(ConversionError, match="cannot convert aten::linalg_pinv") as caught:
        write(EXPORTER, program, tmp_path)
    assert "newer exporter cannot either" in caught.value.hint


def test_the_newer_exporter_may_not_change_the_opset(tmp_path):
    with pytest.raises(ConversionError, match="wrote opset 18 where 13 was asked for"):
        write(EXPORTER, program_of(spectrum, (1, 4, 8)), tmp_path, opset=13, exporter="dynamo")


def test_the_newer_exporter_is_not_there(tmp_path, monkeypatch):
    import exporters.onnx_routes

    monkeypatch.setattr(exporters.onnx_routes, "find_spec", lambda name: None)
    with pytest.raises(ConversionError, match="aten::fft_fft") as caught:
        write(EXPORTER, program_of(spectrum, (1, 4, 8)), tmp_path, opset=18)
    assert "onnxscript" in caught.value.hint


def test_a_batch_that_came_out_fixed_is_an_error(tmp_path, monkeypatch):
    import exporters.traceable

    # Without its preparation the older exporter bakes the example's batch into reshapes.
    monkeypatch.setattr(exporters.traceable, "make_traceable", lambda graph: graph)
    program = program_of(SHAPES["batch into rows"], (1, 4, 8), dynamic=True)
    with pytest.raises(ConversionError, match="at batch 1") as caught:
        write(EXPORTER, program, tmp_path, exporter="torchscript")
    assert caught.value.hint == "export without dynamic batch"


def test_a_declared_batch_that_is_a_number_is_an_error(tmp_path, monkeypatch):
    program = elevit(dynamic=True)
    written = exporters.onnx.WRITERS["torchscript"]

    def fixed(*args):
        model = written(*args)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
        return model

    monkeypatch.setitem(exporters.onnx.WRITERS, "torchscript", fixed)
    with pytest.raises(ConversionError, match="batch of image was to be dynamic"):
        write(EXPORTER, program, tmp_path, exporter="torchscript")


def test_a_wrong_ir_version_is_noticed(tmp_path, monkeypatch):
    class Other(OnnxOptions):
        def ir_of(self, opset):
            return next(answers)

    answers = iter([8, 9])
    with pytest.raises(ConversionError, match="IR version 8 where 9 was asked for"):
        EXPORTER.export(elevit(), tmp_path, Other(exporter="torchscript"))


def test_a_file_that_onnxruntime_refuses_is_reported(tmp_path, capfd):
    program = elevit()
    artifact = write(EXPORTER, program, tmp_path)
    model = read(tmp_path)
    model.graph.node[0].op_type = "Convolve"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ConversionError, match=r"onnxruntime .* refuses model\.onnx: .*Convolve"):
        EXPORTER.load(artifact, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_is_reported(tmp_path):
    artifact = write(EXPORTER, block("softmax", projections=False), tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x00 not a model")
    with pytest.raises(ConversionError, match=r"refuses model\.onnx"):
        EXPORTER.load(artifact, tmp_path)


def test_without_onnxruntime_nothing_is_verified(tmp_path, monkeypatch):
    artifact = write(EXPORTER, block("softmax", projections=False), tmp_path)
    monkeypatch.setattr(exporters.onnx, "find_spec", lambda name: None)
    with pytest.raises(CannotVerifyError, match="onnxruntime is not installed"):
        EXPORTER.load(artifact, tmp_path)


# -- the graph that is traced ----------------------------------------------------------------------


class Layers(nn.Module):
    """Whatever the functions below need; a parameter, two buffers, a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool).tril())
        self.register_buffer("bias", torch.randn(4, 4))
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.function(self, x)


SHAPES = {
    "reshape": lambda m, x: x.reshape(x.shape[0], 2, 2, 8).flatten(1, 2).unflatten(1, (2, 2)),
    "batch into rows": lambda m, x: (x.reshape(x.shape[0] * 2, 2, 8) * 2).view(-1, 4, 8),
    "chunk": lambda m, x: torch.cat([c * i for i, c in enumerate(x.chunk(3, -1))], -1),
    "split": lambda m, x: torch.cat([c * i for i, c in enumerate(x.split(3, -1))], -1),
    "expand": lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1),
    "attention": lambda m, x: nn.functional.scaled_dot_product_attention(x, x, x),
    "masked attention": lambda m, x: nn.functional.scaled_dot_product_attention(
        x, x, x, attn_mask=m.mask, scale=0.3
    ),
    "biased attention": lambda m, x: nn.functional.scaled_dot_product_attention(
        x, x, x, attn_mask=m.bias
    ),
    "constant index": lambda m, x: x[:, torch.tensor([3, 1, 2])],
    "multi-head": lambda m, x: m.heads(x, x, x)[0],
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_stay_dynamic_and_plain(name, tmp_path):
    model = Layers(SHAPES[name]).eval()
    program = capture(model, [TensorSpec("x", (1, 4, 8))], dynamic_batch=True)
    artifact = write(EXPORTER, program, tmp_path, opset=13, exporter="torchscript")
    for runner in EXPORTER.load(artifact, tmp_path):
        assert error_of(runner, program) <= ROUNDING
    if name != "expand":
        assert "Shape" not in artifact.facts["operators"]


def test_the_program_is_left_as_it_was(tmp_path):
    program = block("softmax", projections=True, dynamic=True)
    before = program.fingerprint()
    write(EXPORTER, program, tmp_path)
    assert program.fingerprint() == before
    assert math.isfinite(float(program(torch.randn(3, 16, 16))[0].sum()))


def test_exporters_named_onnx_does_not_hide_onnx():
    assert sys.modules["onnx"] is onnx
    assert exporters.onnx is not onnx


QUIET = """
import sys
from pathlib import Path
from exporters.onnx_checks import open_session
open_session(Path(sys.argv[1]))
"""


def test_onnxruntime_tells_nobody_what_it_ran(tmp_path):
    write(EXPORTER, program_of(lambda m, x: x.relu(), (2, 3)), tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    keep = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment = {**keep, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-c", QUIET, str(tmp_path / "model.onnx")]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert not list(home.rglob("*onnxruntime*"))

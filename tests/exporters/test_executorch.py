"""The ExecuTorch format: its runtime computes the same, with XNNPACK and without."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from program_kit import ROUNDING, block, elevit, error_of, program_of, write
from runtime_kit import tiny
from torch import nn

from edgevit.errors import ConversionError, OptionError
from edgevit.passes import EXACT, run_passes
from exporters import executorch as module
from exporters.base import CannotVerifyError, exporters, make_options
from exporters.executorch import DELEGATE, ExecuTorchExporter, ExecuTorchOptions

pytestmark = pytest.mark.skipif(find_spec("executorch") is None, reason="needs edgevit[executorch]")
EXPORTER = ExecuTorchExporter()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The small module in a file, to be looked at only: the program, the artifact, the folder."""
    folder = tmp_path_factory.mktemp("tiny")
    program = tiny()
    return program, write(EXPORTER, program, folder), folder


def depthwise() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, groups=4)


def error_in_file(program, folder, **options):
    artifact = write(EXPORTER, program, folder, **options)
    (runner,) = EXPORTER.load(artifact, folder)
    return error_of(runner, program)


@pytest.mark.parametrize("xnnpack", [True, False])
def test_a_small_module_agrees(xnnpack, tmp_path, capfd):
    program = tiny()
    artifact = write(EXPORTER, program, tmp_path, xnnpack=xnnpack)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
    assert (runner.proves, runner.precision) == ("verified", "fp32")
    assert runner.label.startswith("ExecuTorch 1.")
    assert artifact.facts["xnnpack"] is xnnpack
    assert (artifact.facts["delegates"] > 0) == xnnpack
    assert ("aten.convolution.out" in artifact.facts["operators"]) != xnnpack
    assert capfd.readouterr() == ("", "")


def test_it_tells_what_it_wrote(written):
    program, artifact, folder = written
    assert [f.name for f in folder.iterdir()] == [artifact.file] == ["model.pte"]
    assert (artifact.inputs, artifact.outputs) == (program.inputs, program.outputs)
    assert artifact.layouts == {"zoom": "NCHW"}
    facts = artifact.facts
    assert facts["size_bytes"] == (folder / "model.pte").stat().st_size
    assert facts["delegates"] == facts["operators"][DELEGATE]
    assert facts["nodes"] == sum(facts["operators"].values())
    assert artifact.versions.keys() == {"torch", "executorch"}


def test_the_program_stays_as_it_is_and_gives_the_same_file(written, tmp_path):
    program, artifact, folder = written
    before = program.fingerprint()
    write(EXPORTER, program, tmp_path)
    assert program.fingerprint() == before
    again, first = (f / artifact.file for f in (tmp_path, folder))
    assert again.read_bytes() == first.read_bytes()
    assert str(Path(__file__).parent).encode() not in first.read_bytes()


def test_a_constant_laid_out_the_other_way_can_be_read(tmp_path):
    def asked(m, x):  # as class attention asks, with a token that depends on no input
        return (m.query.weight.view(1, 1, 2, 4).exp().transpose(1, 2) @ x).softmax(-1)

    program = program_of(asked, (1, 2, 4, 6), query=nn.Linear(4, 2))
    assert error_in_file(run_passes(program, EXACT)[0], tmp_path) <= ROUNDING


def test_softmax_of_a_feature_map_runs_along_its_own_axis(tmp_path):
    program = program_of(
        lambda m, x: (m.a(x) * m.b(x).transpose(-2, -1)).softmax(-1) * m.c(x) + x,
        (1, 4, 8, 8),
        a=depthwise(),
        b=depthwise(),
        c=depthwise(),
    )
    assert error_in_file(program, tmp_path) <= ROUNDING


def test_without_the_rewrite_it_would_not(tmp_path, monkeypatch):
    from exporters import executorch_layout

    # Once ExecuTorch is right by itself this fails, and the rewrite can go.
    monkeypatch.setattr(executorch_layout, "softmax_in_rows", lambda program: program)
    program = program_of(lambda m, x: m.a(x).softmax(-1), (1, 4, 8, 8), a=depthwise())
    assert error_in_file(program, tmp_path) > 0.1


def test_softmax_that_needs_no_rewrite_gets_none():
    from exporters.executorch_layout import softmax_in_rows

    behind_a_product = program_of(
        lambda m, x: (m.a(x) @ x.transpose(-2, -1)).softmax(-1), (1, 4, 8, 8), a=depthwise()
    )
    along_the_channels = program_of(lambda m, x: m.a(x).softmax(1), (1, 4, 8, 8), a=depthwise())
    for program in (behind_a_product, along_the_channels):
        assert softmax_in_rows(program) is program


def test_a_rewritten_softmax_is_the_same_program():
    from exporters.executorch_layout import softmax_in_rows

    program = program_of(lambda m, x: m.a(x).relu().softmax(3), (1, 4, 8, 8), a=depthwise())
    rewritten = softmax_in_rows(program)
    assert rewritten is not program
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rewritten(x), program(x), rtol=0, atol=1e-6)


def test_a_fixed_batch_is_fixed(written):
    _, artifact, folder = written
    (runner,) = EXPORTER.load(artifact, folder)
    with pytest.raises(RuntimeError, match="Failed to execute"):
        runner.run([np.zeros((2, *s.shape[1:]), np.float32) for s in artifact.inputs])


def test_a_dynamic_batch_is_refused(tmp_path):
    program = program_of(lambda m, x: x * 2, (1, 4), dynamic=True)
    with pytest.raises(OptionError, match="dynamic_batch: expected a fixed batch") as caught:
        write(EXPORTER, program, tmp_path)
    assert "without dynamic batch" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_a_kernel_is_named_with_its_layer(tmp_path, capfd):
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    program = program_of(lambda m, x: m.mix(x), (1, 4), mix=Spectrum())
    with pytest.raises(ConversionError) as caught:
        write(EXPORTER, program, tmp_path)
    assert "special_bessel_j0, used in mix" in f"{caught.value} {caught.value.hint}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"no program at all " * 9])
def test_a_damaged_file_is_refused(content, written, tmp_path, capfd):
    _, artifact, _ = written
    (tmp_path / artifact.file).write_bytes(content)
    with pytest.raises(ConversionError, match=r"ExecuTorch 1\..* refuses model\.pte: "):
        EXPORTER.load(artifact, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_other_values_of_the_option_are_refused(value):
    with pytest.raises(OptionError, match="xnnpack: expected true or false"):
        ExecuTorchOptions(xnnpack=value)


def test_other_options_are_refused():
    with pytest.raises(OptionError) as caught:
        make_options(EXPORTER, {"xnpack": True})
    assert "did you mean xnnpack" in caught.value.hint


def test_it_is_found_by_its_name():
    assert type(exporters.get("executorch")) is ExecuTorchExporter


def test_without_the_package_nothing_is_proved(written, monkeypatch):
    _, artifact, folder = written
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert EXPORTER.missing() == ["executorch"]
    with pytest.raises(CannotVerifyError, match="executorch is not installed"):
        EXPORTER.load(artifact, folder)


def test_asking_what_is_missing_imports_nothing():
    code = """
import sys
from exporters.base import exporters
assert exporters.get("executorch").missing() == []
print(sorted({"torch", "executorch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_elevit_agrees(tmp_path):
    assert error_in_file(elevit(64, batch=2), tmp_path) <= ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elementwise", "softmax", "sima", "xca", "linformer"])
def test_blocks_agree(name, tmp_path):
    assert error_in_file(block(name, projections=name == "linformer"), tmp_path) <= ROUNDING


def attention(m, x):
    q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("xnnpack", [True, False])
def test_no_factor_of_a_product_is_copied(xnnpack, tmp_path):
    layers = {name: nn.Linear(16, 16) for name in "qkv"}
    program = program_of(attention, (2, 6, 16), **layers)
    artifact = write(EXPORTER, program, tmp_path, xnnpack=xnnpack)
    assert artifact.facts["rewritten"]["products_in_batches"] == 2
    assert "aten.expand_copy.out" not in artifact.facts["operators"]
    if xnnpack:  # nothing is left that it could not do in one go
        assert artifact.facts["operators"] == {DELEGATE: 1}
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


@pytest.mark.parametrize(
    "product",
    [
        lambda m, x: m.q(x) @ m.v.weight,
        lambda m, x: m.q(x) @ m.v.bias,
    ],
    ids=["of one matrix", "with a vector"],
)
def test_other_products_are_left(product, tmp_path):
    program = program_of(product, (2, 6, 16), q=nn.Linear(16, 16), v=nn.Linear(16, 16))
    artifact = write(EXPORTER, program, tmp_path)
    assert artifact.facts["rewritten"]["products_in_batches"] == 0
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING

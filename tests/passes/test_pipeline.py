import subprocess
import sys

import pytest
import torch
from rewriting import EXACT, Forward, rewrite
from torch import nn

from edgevit.capture import capture
from edgevit.errors import UnknownNameError
from edgevit.passes import PIPELINE, passes, run_passes
from edgevit.passes.graph import operation
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.randomize import randomize_


def model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.1), nn.GELU()
    )


def test_runs_in_its_own_order_whatever_is_asked_for_first():
    done = rewrite(model(), (1, 3, 8, 8), ["fold_batchnorm", "drop_identities"])
    assert [report.name for report in done.reports] == ["drop_identities", "fold_batchnorm"]
    assert [report.rewritten for report in done.reports] == [1, 1]
    assert done.error < EXACT


def test_every_pass_has_the_name_it_is_found_by():
    assert tuple(rule.name for rule in passes(PIPELINE)) == PIPELINE
    assert [rule.name for rule in passes(PIPELINE) if rule.changes_model] == ["substitute_relu"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError) as error:
        passes(["fold_batch_norm"])
    assert error.value.nearest[:1] == ["fold_batchnorm"]


@pytest.mark.parametrize("names", [[], list(PIPELINE)])
def test_the_same_program_comes_back_if_nothing_was_rewritten(names):
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    done = rewrite(plain, (1, 3, 8, 8), names)
    assert done.after is done.before
    assert [report.rewritten for report in done.reports] == [0] * len(names)


def test_weights_that_nothing_uses_are_gone_and_the_rest_keep_their_names():
    done = rewrite(model(), (1, 3, 8, 8), ["fold_batchnorm"])
    assert sorted(done.before.exported.state_dict) != ["0.bias", "0.weight"]
    assert sorted(done.after.exported.state_dict) == ["0.bias", "0.weight"]


def test_nodes_keep_the_layer_they_came_from():
    done = rewrite(model(), (1, 3, 8, 8), PIPELINE)
    layers = {
        operation(node).__name__: list(node.meta["nn_module_stack"].values())[-1][0]
        for node in done.after.graph_module().graph.nodes
        if node.op == "call_function"
    }
    assert layers == {"conv2d": "0", "relu": "3"}


def test_inputs_outputs_and_batch_stay():
    done = rewrite(model(), (1, 3, 8, 8), PIPELINE, dynamic=True)
    assert done.after.inputs == done.before.inputs
    assert done.after.outputs == done.before.outputs
    (logits,) = done.after(done.images)
    assert logits.shape[0] == done.images.shape[0] == 3


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.b = nn.Linear(4, 4)

    def forward(self, x, y):
        return self.b(self.a(x) + y), x * y


def test_several_inputs_and_outputs():
    specs = [TensorSpec("image", (1, 4)), TensorSpec("other", (1, 4))]
    model = randomize_(TwoInputs()).eval()
    program, (report,) = run_passes(capture(model, specs, dynamic_batch=True), ["fold_batchnorm"])
    assert report.rewritten == 1
    assert [spec.name for spec in program.inputs] == ["image", "other"]
    inputs = torch.randn(3, 4), torch.randn(3, 4)
    for got, wanted in zip(program(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(got, wanted)


def test_dead_code_is_not_reported():
    def forward(m, x):
        m.bn(x)
        return m.conv(x)

    done = rewrite(
        Forward(forward, bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 1)),
        (1, 3, 8, 8),
        ["fold_batchnorm"],
    )
    assert done.report.rewritten == 0
    assert done.report.refusals == ()


def test_reports_are_json():
    done = rewrite(model(), (1, 3, 8, 8), ["fold_batchnorm"])
    assert done.report.to_json() == {
        "name": "fold_batchnorm",
        "rewritten": 1,
        "refused": [],
        "details": {"into_layer_before": 1, "into_layers_behind": 0},
    }


def test_names_are_told_without_importing_torch():
    code = (
        "import sys, edgevit.passes as p; print(len(p.PIPELINE)); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

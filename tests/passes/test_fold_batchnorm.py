import pytest
import torch
import torch.nn.functional as F
from rewriting import EXACT, Forward, rewrite
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgevit.capture import capture
from edgevit.passes import Refusal, absorb, run_passes
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.factory import create_model
from edgevit.zoo.randomize import randomize_

MAP = (2, 8, 7, 7)
TOKENS = (2, 12, 8)


def chain(*layers):
    return nn.Sequential(*layers)


#: Cases whose reshapes name the batch.
STATIC_TOO = ["linear, flatten, reshape_as", "linear, reshape, view", "linear, transpose"]


def read_by(x, *layers):
    return torch.stack([layer(x) for layer in layers]).sum(0)


def levit(m, x):
    y = m.linear(x)
    return m.bn(y.flatten(0, 1)).reshape_as(y)


def a_piece(m, x):
    first, second = m.conv(x).chunk(2, 1)
    return torch.cat([m.bn(first), second], 1)


def a_piece_of_one(m, x):
    first, second = m.conv(x).split([1, 11], 1)
    return torch.cat([m.bn(first), second], 1)


def view_tokens(m, x):
    batch, tokens, _ = x.shape
    return m.bn(m.linear(x).reshape(batch * tokens, -1)).view(batch, tokens, -1)


# -- into the layer before -------------------------------------------------------------------------

INTO_BEFORE = {
    "conv1d": (chain(nn.Conv1d(8, 6, 3, padding=1, bias=False), nn.BatchNorm1d(6)), (2, 8, 9)),
    "conv1d groups": (chain(nn.Conv1d(8, 6, 3, groups=2), nn.BatchNorm1d(6)), (2, 8, 9)),
    "conv2d": (chain(nn.Conv2d(8, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)), MAP),
    "conv2d bias": (chain(nn.Conv2d(8, 6, 3, dilation=2), nn.BatchNorm2d(6, eps=0.1)), MAP),
    "conv2d groups": (chain(nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12)), MAP),
    "conv2d same": (chain(nn.Conv2d(8, 6, 3, padding="same"), nn.BatchNorm2d(6)), MAP),
    "depthwise": (chain(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)), MAP),
    "reflect": (
        chain(nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)),
        MAP,
    ),
    "conv3d": (chain(nn.Conv3d(4, 6, 2, groups=2), nn.BatchNorm3d(6)), (2, 4, 3, 3, 3)),
    "no affine": (chain(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6, affine=False)), MAP),
    "transposed": (chain(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.BatchNorm2d(6)), MAP),
    "transposed groups": (
        chain(nn.ConvTranspose2d(8, 12, 2, 2, groups=4, bias=False), nn.BatchNorm2d(12)),
        MAP,
    ),
    "transposed 1d": (chain(nn.ConvTranspose1d(8, 6, 3, groups=2), nn.BatchNorm1d(6)), (2, 8, 9)),
    "linear": (chain(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6)), (4, 8)),
    "linear, flatten, reshape_as": (
        Forward(levit, linear=nn.Linear(8, 6, bias=False), bn=nn.BatchNorm1d(6)),
        TOKENS,
    ),
    "linear, reshape, view": (
        Forward(view_tokens, linear=nn.Linear(8, 6), bn=nn.BatchNorm1d(6)),
        TOKENS,
    ),
    "linear, transpose": (
        Forward(
            lambda m, x: m.bn(m.linear(x).transpose(1, 2)).transpose(1, 2),
            linear=nn.Linear(8, 6),
            bn=nn.BatchNorm1d(6),
        ),
        TOKENS,
    ),
    "dropout": (chain(nn.Conv2d(8, 6, 1), nn.Dropout(0.3), nn.BatchNorm2d(6)), MAP),
    "identity": (chain(nn.Conv2d(8, 6, 1), nn.Identity(), nn.BatchNorm2d(6)), MAP),
    "average pool": (chain(nn.Conv2d(8, 6, 1), nn.AvgPool2d(2), nn.BatchNorm2d(6)), MAP),
    "global pool": (
        Forward(
            lambda m, x: m.bn(m.conv(x).mean((2, 3))), conv=nn.Conv2d(8, 6, 1), bn=nn.BatchNorm1d(6)
        ),
        MAP,
    ),
    "max pool": (chain(nn.Conv2d(8, 6, 1), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(6)), MAP),
    "upsample": (
        chain(nn.Conv2d(8, 6, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.BatchNorm2d(6)),
        MAP,
    ),
    "nearest": (chain(nn.Conv2d(8, 6, 1), nn.Upsample(scale_factor=2), nn.BatchNorm2d(6)), MAP),
    "unflatten": (
        chain(nn.Conv1d(8, 6, 1), nn.Unflatten(2, (3, 3)), nn.BatchNorm2d(6)),
        (2, 8, 9),
    ),
    "two in a row": (chain(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), MAP),
    "joined": (
        Forward(
            lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)),
            a=nn.Conv2d(8, 2, 1),
            b=nn.Conv2d(8, 4, 3, padding=1),
            bn=nn.BatchNorm2d(6),
        ),
        MAP,
    ),
    "sum of two": (
        Forward(
            lambda m, x: m.bn(torch.add(m.a(x), m.b(x), alpha=0.5)),
            a=nn.Conv2d(8, 6, 1),
            b=nn.Conv2d(8, 6, 3, padding=1),
            bn=nn.BatchNorm2d(6),
        ),
        MAP,
    ),
    "a piece": (
        Forward(
            a_piece,
            conv=nn.Conv2d(8, 12, 1),
            bn=nn.BatchNorm2d(6),
        ),
        MAP,
    ),
    "a piece of one channel": (
        Forward(a_piece_of_one, conv=nn.Conv2d(8, 12, 1), bn=nn.BatchNorm2d(1)),
        MAP,
    ),
    "every second pixel, then a view": (
        Forward(
            lambda m, x: m.bn(m.conv(x)[:, :, ::2, ::2]).view(x.shape[0], -1),
            conv=nn.Conv2d(8, 6, 1),
            bn=nn.BatchNorm2d(6),
        ),
        MAP,
    ),
    "every second pixel, then view_as": (
        Forward(
            lambda m, x: m.bn(m.conv(x)[:, :, ::2, ::2]).view_as(x[:, :6, :4, :4].flatten(1)),
            conv=nn.Conv2d(8, 6, 1),
            bn=nn.BatchNorm2d(6),
        ),
        MAP,
    ),
}


@pytest.mark.parametrize("case", INTO_BEFORE)
def test_folds_into_the_layer_before(case):
    model, shape = INTO_BEFORE[case]
    check_all_folded(rewrite(model, shape, dynamic=True), "into_layer_before")


def test_of_two_in_a_row_the_first_takes_in_the_second():
    done = rewrite(chain(nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 6)), (4, 8))
    assert done.report.details == {"into_layer_before": 1, "into_layers_behind": 1}
    assert done.count("batch_norm") == 0
    assert done.error < EXACT


@pytest.mark.parametrize("case", ["conv2d", "transposed groups", *STATIC_TOO])
def test_folds_into_the_layer_before_at_a_fixed_batch(case):
    model, shape = INTO_BEFORE[case]
    check_all_folded(rewrite(model, shape), "into_layer_before")


def check_all_folded(done, place):
    norms = sum(isinstance(module, _BatchNorm) for module in done.model.modules())
    assert done.report.details.pop(place) == norms > 0
    assert list(done.report.details.values()) == [0]
    assert done.report.rewritten == norms
    assert done.report.refusals == ()
    assert done.count("batch_norm") == 0
    assert not any(name.startswith("bn") for name in done.after.exported.state_dict)
    assert done.error < EXACT


# -- into the layers behind ------------------------------------------------------------------------

INTO_BEHIND = {
    "linear": (chain(nn.BatchNorm1d(8), nn.Linear(8, 6, bias=False)), (4, 8)),
    "mean, linear": (  # EleViT, SwiftFormer
        Forward(
            lambda m, x: m.head(m.bn(x).mean((-2, -1))), bn=nn.BatchNorm2d(8), head=nn.Linear(8, 6)
        ),
        MAP,
    ),
    "pool, flatten, linear": (
        chain(nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)),
        MAP,
    ),
    "after pool and flatten, linear": (  # EfficientViT
        chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 6)),
        MAP,
    ),
    "flatten, linear": (chain(nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 49, 6)), MAP),
    "tokens, linear": (
        Forward(
            lambda m, x: m.head(m.bn(x).flatten(2).transpose(1, 2)),
            bn=nn.BatchNorm2d(8),
            head=nn.Linear(8, 6),
        ),
        MAP,
    ),
    "dropout, linear": (chain(nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 6)), (4, 8)),
    "two heads": (  # SwiftFormer
        Forward(
            lambda m, x: read_by(m.bn(x).mean((2, 3)), m.a, m.b),
            bn=nn.BatchNorm2d(8),
            a=nn.Linear(8, 6),
            b=nn.Linear(8, 6),
        ),
        MAP,
    ),
    "1x1 conv": (chain(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)), MAP),
    "1x1 conv groups": (chain(nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1, groups=4, bias=False)), MAP),
    "1x1 conv same": (chain(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1, padding="same")), MAP),
    "3x3 conv without padding": (chain(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, 2)), MAP),
    "3x3 conv valid": (chain(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding="valid")), MAP),
    "depthwise without padding": (chain(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)), MAP),
    "reflected border": (
        chain(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")),
        MAP,
    ),
    "conv1d": (chain(nn.BatchNorm1d(8), nn.Conv1d(8, 6, 3, groups=2)), (2, 8, 9)),
    "1x1 convs": (
        Forward(
            lambda m, x: read_by(m.bn(x), m.a, m.b, m.c),
            bn=nn.BatchNorm2d(8),
            a=nn.Conv2d(8, 6, 1),
            b=nn.Conv2d(8, 6, 1),
            c=nn.Conv2d(8, 6, 1),
        ),
        MAP,
    ),
    "one reader each of two halves": (
        Forward(
            lambda m, x: torch.add(*map(read_by, m.bn(x).split([4, 4], 1), (m.a, m.b))),
            bn=nn.BatchNorm2d(8),
            a=nn.Conv2d(4, 6, 1),
            b=nn.Conv2d(4, 6, 1),
        ),
        MAP,
    ),
    "joined with others": (
        Forward(
            lambda m, x: m.conv(torch.cat([x, m.bn(x), x.relu()], 1)),
            bn=nn.BatchNorm2d(8),
            conv=nn.Conv2d(24, 6, 1),
        ),
        MAP,
    ),
    "activation before": (
        chain(nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)),
        MAP,
    ),
    "relu in place before": (
        chain(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)),
        MAP,
    ),
}


@pytest.mark.parametrize("case", INTO_BEHIND)
def test_folds_into_the_layers_behind(case):
    model, shape = INTO_BEHIND[case]
    check_all_folded(rewrite(model, shape, dynamic=True), "into_layers_behind")


@pytest.mark.parametrize("case", ["mean, linear", "1x1 conv groups", "flatten, linear"])
def test_folds_into_the_layers_behind_at_a_fixed_batch(case):
    model, shape = INTO_BEHIND[case]
    check_all_folded(rewrite(model, shape), "into_layers_behind")


def without_shift(norm):
    """A BatchNorm of random scale whose shift is exactly zero."""
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.running_var.uniform_(0.5, 1.5)
    return norm


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Conv2d(8, 6, 3, padding="same", groups=2),
        nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2),
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 6, 3)),
    ],
)
def test_a_zero_shift_goes_through_padding(layer):
    done = rewrite(chain(without_shift(nn.BatchNorm2d(8)), layer), MAP, randomize=False)
    assert done.report.rewritten == 1
    assert done.count("batch_norm") == 0
    assert done.error < EXACT


# -- refusals --------------------------------------------------------------------------------------


def residual(m, x):
    y = m.conv(x)
    return m.bn(y + m.inner(y)).relu()


def conv_read_twice(m, x):
    y = m.conv(x)
    return m.bn(y).relu() + y


def one_reader_of_two(m, x):
    y = m.bn(x)
    return m.conv(y) + y.relu()


def overwritten(m, x):
    y = x + m.conv(x)
    normed = m.bn(y)
    y.relu_()
    return m.head(normed) + y


def overwritten_behind_a_view(m, x):
    y = x + x.mean()
    normed = m.bn(y.flatten(2))
    y.relu_()
    return m.head(normed) + y.flatten(2)


def joined_with_itself(m, x):
    y = m.conv(x)
    return m.bn(torch.cat([y, y], 1)).relu()


def added_to_itself(m, x):
    y = m.conv(x)
    return m.bn(y + y).relu()


def same_piece_twice(m, x):
    pieces = m.conv(x).split([8, 8], 1)
    return m.bn(pieces[1]).relu() + pieces[-1]


def statistics_of_the_batch(m, x):
    mean, variance = m.bn.running_mean.clone(), m.bn.running_var.clone()
    return F.batch_norm(m.conv(x), mean, variance, m.bn.weight, m.bn.bias, training=True)


CONV_BN = {"conv": nn.Conv2d(8, 8, 1), "bn": nn.BatchNorm2d(8)}

REFUSED = {
    "residual": (
        Forward(residual, **CONV_BN, inner=nn.Conv2d(8, 8, 1)),
        "bn",
        "it follows a residual add (add in the model's own forward): conv2d in conv has several",
    ),
    "padded conv behind": (
        chain(nn.GELU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        "1",
        "conv2d in 2 pads with zeros, and the shift is not zero, so its border would be wrong",
    ),
    "zero pad behind": (
        chain(nn.GELU(), nn.BatchNorm2d(8), nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3)),
        "1",
        "pad in 2 pads with a constant that the shift would change",
    ),
    "same padding behind": (
        chain(nn.GELU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding="same")),
        "1",
        "its border would be wrong",
    ),
    "transposed conv behind": (
        chain(nn.GELU(), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2, 2)),
        "1",
        "conv_transpose2d in 2 is transposed, and the shift is not zero",
    ),
    "activations on both sides": (
        chain(nn.Conv2d(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)),
        "2",
        "before it: gelu in 1 does not commute with a scale and a shift; "
        "behind it: relu in 3 does not commute with a scale and a shift",
    ),
    "conv read elsewhere": (
        Forward(conv_read_twice, **CONV_BN),
        "bn",
        "before it: conv2d in conv has several readers (batch_norm in bn, "
        "add in the model's own forward); behind it: relu",
    ),
    "output of the model": (
        chain(nn.GELU(), nn.BatchNorm2d(8)),
        "1",
        "behind it: the model's output reads it and has no weights to fold into",
    ),
    "one reader of two": (
        Forward(one_reader_of_two, **CONV_BN),
        "bn",
        "before it: the model's input has no weights to fold into; "
        "behind it: relu in the model's own forward does not commute",
    ),
    "in place": (
        Forward(overwritten, **CONV_BN, head=nn.Conv2d(8, 8, 1)),
        "bn",
        "behind it: relu_ in the model's own forward overwrites its input in place",
    ),
    "in place, through another view": (
        Forward(overwritten_behind_a_view, bn=nn.BatchNorm1d(8), head=nn.Conv1d(8, 8, 1)),
        "bn",
        "behind it: relu_ in the model's own forward overwrites its input in place",
    ),
    "softmax behind": (
        chain(nn.GELU(), nn.BatchNorm2d(8), nn.Softmax(1)),
        "1",
        "softmax in 2 does not commute",
    ),
    "flatten before": (
        chain(nn.Conv2d(8, 2, 1), nn.Flatten(), nn.BatchNorm1d(98), nn.ReLU()),
        "2",
        "the channels of conv2d in 0 do not each have one scale",
    ),
    "pool that counts its padding": (
        chain(nn.Conv2d(8, 8, 1), nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()),
        "2",
        "avg_pool2d in 1 averages zeros of its padding too",
    ),
    "mean over channels": (
        Forward(lambda m, x: m.conv(x + m.bn(x.relu()).mean(1, keepdim=True)), **CONV_BN),
        "bn",
        "mean in the model's own forward is over the channels",
    ),
    "tokens, not channels": (
        Forward(
            lambda m, x: m.bn(m.linear(x).flatten(2)).relu(),
            linear=nn.Linear(7, 7),
            bn=nn.BatchNorm1d(8),
        ),
        "bn",
        "the channels of linear in linear do not each have one scale",
    ),
    "joined with itself": (
        Forward(joined_with_itself, conv=nn.Conv2d(8, 8, 1), bn=nn.BatchNorm2d(16)),
        "bn",
        "cat in the model's own forward joins a tensor with itself",
    ),
    "added to itself": (
        Forward(added_to_itself, **CONV_BN),
        "bn",
        "add in the model's own forward adds something without weights to fold into",
    ),
    "broadcast": (
        Forward(
            lambda m, x: m.bn(m.conv(x).expand(-1, 8, -1, -1)).relu(),
            conv=nn.Conv2d(8, 1, 1),
            bn=nn.BatchNorm2d(8),
        ),
        "bn",
        "expand in the model's own forward uses one channel for several with another scale",
    ),
    "weights made in the graph": (
        Forward(
            lambda m, x: m.bn(F.conv2d(x, m.conv.weight / m.conv.weight.norm())).relu(), **CONV_BN
        ),
        "bn",
        "the weights of conv2d in the model's own forward are computed in the graph",
    ),
    "the same piece twice": (
        Forward(same_piece_twice, conv=nn.Conv2d(8, 16, 1), bn=nn.BatchNorm2d(8)),
        "bn",
        "has several readers (batch_norm in bn, ",
    ),
    "without running statistics": (
        Forward(
            lambda m, x: m.bn(m.conv(x)),
            conv=nn.Conv2d(8, 8, 1),
            bn=nn.BatchNorm2d(8, track_running_stats=False),
        ),
        "bn",
        "it has no running statistics, so what it does depends on the batch",
    ),
    "in training mode": (
        Forward(statistics_of_the_batch, **CONV_BN),
        "batch_norm",
        "it is in training mode, so what it does depends on the batch",
    ),
    "own weight made in the graph": (
        Forward(
            lambda m, x: F.batch_norm(
                m.conv(x), m.bn.running_mean, m.bn.running_var, m.bn.weight.abs(), m.bn.bias
            ),
            **CONV_BN,
        ),
        "batch_norm",
        "its weight is computed in the graph",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_layer_and_the_reason(case):
    model, layer, reason = REFUSED[case]
    done = rewrite(model, MAP)
    assert done.after is done.before
    assert done.report.rewritten == 0
    (refusal,) = done.report.refusals
    assert refusal.layer == layer
    assert reason in refusal.reason
    assert done.count("batch_norm") == 1
    assert done.error < EXACT


def test_a_naive_fold_into_a_padded_convolution_would_be_wrong(monkeypatch):
    model = chain(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    monkeypatch.setattr(absorb, "_check_border", lambda node, weight: None)
    done = rewrite(model, MAP)
    assert done.report.rewritten == 1
    assert done.error > 1e-2


def test_statistics_that_are_not_finite_are_refused():
    norm = randomize_(nn.BatchNorm2d(8))
    norm.running_var[2] = -1.0
    program = capture(chain(nn.Conv2d(8, 8, 1), norm).eval(), [TensorSpec("x", MAP)])
    after, (report,) = run_passes(program, ["fold_batchnorm"])
    assert after is program
    assert report.refusals == (Refusal("1", "its scale or its shift is not finite"),)


def test_a_maximum_needs_scales_above_zero():
    model = chain(nn.Conv2d(8, 8, 1), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(8))
    done = rewrite(model, MAP)
    assert done.report.rewritten == 1
    with torch.no_grad():
        model[2].weight[3] = -0.7
    done = rewrite(model, MAP, randomize=False)
    assert done.report.refusals[0].reason.startswith(
        "before it: max_pool2d in 1 takes a maximum, and a scale is negative"
    )


# -- shared weights --------------------------------------------------------------------------------


def conv_called_twice(m, x):
    return m.bn(m.conv(x)).relu() + m.conv(x.relu())


def test_a_convolution_called_twice_keeps_its_weights_elsewhere():
    done = rewrite(Forward(conv_called_twice, **CONV_BN), MAP)
    assert done.report.details["into_layer_before"] == 1
    assert done.error < EXACT
    state = done.after.exported.state_dict
    assert torch.equal(state["conv.weight"], done.model.conv.weight)
    assert sorted(state) == ["conv.bias", "conv.bias_1", "conv.weight", "conv.weight_1"]


@pytest.mark.parametrize("first", [True, False])
def test_tied_weights_are_copied(first):
    layers = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8, bias=False), "bn": nn.BatchNorm1d(8)}
    layers["b"].weight = layers["a"].weight

    def forward(m, x):
        return m.b(m.bn(m.a(x)).relu()) if first else m.bn(m.b(m.a(x).relu()))

    done = rewrite(Forward(forward, **layers), (4, 8))
    assert done.report.rewritten == 1
    assert done.error < EXACT


def test_a_tied_weight_may_take_two_folds():
    layers = {"a": nn.Conv2d(8, 8, 1), "b": nn.Conv2d(8, 8, 1), "bn": nn.BatchNorm2d(8)}
    layers["b"].weight = layers["a"].weight
    model = Forward(lambda m, x: m.b(m.bn(m.bn(m.a(x)).relu())), **layers)
    done = rewrite(model, MAP)
    assert done.report.details == {"into_layer_before": 1, "into_layers_behind": 1}
    assert done.error < EXACT


def test_the_program_and_the_model_it_came_from_stay_as_they_are():
    model = chain(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    done = rewrite(model, MAP)
    with torch.inference_mode():
        wanted = model(done.images)
    assert torch.equal(done.before(done.images)[0], wanted)
    assert done.before.exported.state_dict["0.weight"].equal(model[0].weight)
    assert not done.after.exported.state_dict["0.weight"].equal(model[0].weight)


# -- in place, types, whole models -----------------------------------------------------------------


def sum_in_place(m, x):
    y = m.a(x)
    y += m.b(x)
    return m.bn(y).relu_()


def test_sums_and_activations_in_place():
    layers = {"a": nn.Conv2d(8, 8, 1), "b": nn.Conv2d(8, 8, 1), "bn": nn.BatchNorm2d(8)}
    done = rewrite(Forward(sum_in_place, **layers), MAP)
    assert done.count("add_") == done.count("relu_") == 1
    assert done.report.details["into_layer_before"] == 1
    assert done.error < EXACT


def test_weights_keep_their_type_and_sums_are_taken_in_float64():
    inner = chain(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).double()
    done = rewrite(Forward(lambda m, x: m.inner(x.double()), inner=inner), MAP)
    assert done.report.rewritten == 2
    assert done.after.exported.state_dict["inner.1.weight"].dtype == torch.float64
    assert done.error < 1e-13


def test_folds_where_it_can_and_reports_the_rest():
    model = chain(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1),
    )
    done = rewrite(model, MAP)
    assert done.report.rewritten == 1
    assert [refusal.layer for refusal in done.report.refusals] == ["3"]
    assert done.count("batch_norm") == 1
    assert done.error < EXACT


def test_elevit_folds_completely():
    model = create_model("elevit", image_size=64, widths=(8, 16, 24), depths=(1, 1, 1))
    done = rewrite(model, (1, 3, 64, 64), dynamic=True)
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    assert done.report.details == {"into_layer_before": norms - 1, "into_layers_behind": 1}
    assert done.report.refusals == ()
    assert done.count("batch_norm") == 0
    assert done.error < EXACT


@pytest.mark.slow
def test_elevit_folds_completely_at_full_width():
    model = create_model("elevit", image_size=64)
    done = rewrite(model, (1, 3, 64, 64))
    assert done.report.details == {"into_layer_before": 85, "into_layers_behind": 1}
    assert done.report.refusals == ()
    assert done.count("batch_norm") == 0
    assert done.error < EXACT

"""EleViT: counts (exact where the paper's integer or the reconstruction's is known) and options."""

import pytest
import torch

from edgevit.capture import capture, half_weights
from edgevit.errors import OptionError, ShapeError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.counting import count_macs, count_parameters
from edgevit.zoo.factory import create_model
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.registry import block_info

ABLATION = {
    "elevit": (23_425_310, 2.3334),
    "elevit_qkdot": (23_425_310, 2.3517),
    "elevit_fvdot": (23_425_310, 2.3517),
    "elevit_qkdot_fvdot": (23_425_310, 2.3699),
    "elevit_noff": (23_425_290, 2.3334),
    "elevit_qkdot_noff": (23_425_290, 2.3517),
    "elevit_fvdot_noff": (23_425_290, 2.3517),
    "elevit_qkdot_fvdot_noff": (23_425_290, 2.3699),
}


def image(size, batch=1):
    return TensorSpec("image", (batch, 3, size, size), "image")


@pytest.mark.parametrize(("name", "counts"), ABLATION.items())
def test_parameters_and_macs(name, counts):
    params, gmacs = counts
    with torch.device("meta"):
        model = create_model(name)
    assert count_parameters(model) == params
    assert count_macs(model, [image(224)]) / 1e9 == pytest.approx(gmacs, rel=5e-5)


@pytest.mark.parametrize(("classes", "params"), [(100, 23_471_480), (200, 23_522_780)])
def test_parameters_with_other_heads(classes, params):
    with torch.device("meta"):
        assert count_parameters(create_model("elevit", num_classes=classes)) == params


def test_macs_at_64_pixels():
    with torch.device("meta"):
        model = create_model("elevit_qkdot_fvdot", image_size=64)
    assert count_macs(model, [image(64)]) / 1e9 == pytest.approx(0.1913, rel=5e-4)


def small(name="elevit", **options):
    return create_model(name, image_size=64, widths=(16, 24, 32), depths=(1, 1, 2), **options)


@pytest.mark.parametrize("name", ABLATION)
def test_every_variant_computes_something_else(name):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    state = randomize_(small()).state_dict()
    plain = small()
    plain.load_state_dict(state)
    other = small(name)
    other.load_state_dict(state, strict=False)
    difference = (plain(x) - other(x)).abs().max()
    assert (difference > 1e-4) == (name != "elevit")


def test_the_softmax_axes_differ():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    outputs = []
    for axis in ("width", "space", "channel"):
        model = randomize_(small(softmax_axis=axis))
        outputs.append(model(x))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-5)


def test_the_seed_fixes_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_eval_is_independent_of_the_batch():
    torch.manual_seed(0)
    model = randomize_(small())
    x = torch.randn(4, 3, 64, 64) * torch.tensor([0.1, 1, 3, 10]).view(4, 1, 1, 1)
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-5, atol=1e-5)


def test_one_training_step_leaves_finite_gradients_everywhere():
    torch.manual_seed(0)
    model = small().train()
    loss = torch.nn.functional.cross_entropy(
        model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3])
    )
    loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_capture_computes_the_same(dynamic):
    torch.manual_seed(0)
    model = randomize_(small())
    program = capture(model, [image(64)], dynamic_batch=dynamic)
    x = torch.randn(3 if dynamic else 1, 3, 64, 64)
    torch.testing.assert_close(program(x)[0], model(x), rtol=0, atol=1e-6)
    assert program.outputs[0].shape == (1, 10)


def test_the_fingerprint_tells_weights_and_graphs_apart():
    prints = [
        capture(model, [image(64)]).fingerprint()
        for model in (small(), small(), small(seed=1), small("elevit_qkdot"))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 100}, ShapeError, "multiples of 32, got 100"),
        ({"image_size": 0}, ShapeError, "positive"),
        ({"image_size": (64, 96)}, ShapeError, "square images, got 64 x 96"),
        ({"num_classes": 0}, OptionError, "num_classes: expected a whole number"),
        ({"in_chans": 0}, OptionError, "in_chans"),
        ({"softmax_axis": "height"}, OptionError, "width or space or channel"),
        ({"qk": "cross"}, OptionError, "element or dot"),
        ({"depth": 3}, OptionError, "depth: expected an option of this model"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        create_model("elevit", **options)


def test_a_picture_that_is_not_square_is_refused():
    with pytest.raises(ShapeError, match="64 x 96"):
        small()(torch.zeros(1, 3, 64, 96))


def test_half_weights_are_rounded_and_the_program_is_left_alone():
    torch.manual_seed(0)
    program = capture(randomize_(small()), [image(64)])
    x, before = torch.randn(1, 3, 64, 64), program.fingerprint()
    rounded = half_weights(program)
    assert program.fingerprint() == before
    for tensor in rounded.parameters():
        assert torch.equal(tensor, tensor.half().float())
    error = (rounded(x) - program(x)[0]).abs().max() / program(x)[0].abs().max()
    assert 1e-6 < error < 1e-2


@pytest.mark.parametrize("block", ["softmax", "sima", "cascaded_group", "swift_additive"])
def test_another_block_takes_the_place_of_the_products(block):
    torch.manual_seed(0)
    options = {"image_size": 64, "widths": (32, 64, 64), "depths": (1, 1, 2)}
    model = randomize_(create_model(f"elevit+{block}", **options))
    own = block_info(block)
    assert sum(type(m).__name__ == own.function for m in model.modules()) == 4
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = model(x)
    assert out.shape == (2, 10)
    assert (out[0] - out[1]).abs().max() > 1e-3 * out.abs().max()

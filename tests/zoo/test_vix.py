"""Vision Xformers: what they compute, what can be swapped, what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F

from edgevit.capture import capture
from edgevit.errors import OptionError, ShapeError, WeightsError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention import fourier, linformer, mlp_mixer, nystrom, performer  # noqa: F401
from edgevit.zoo.attention.linformer import LinformerAttention
from edgevit.zoo.attention.performer import PerformerAttention
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import vix_cct, vix_cvt, vix_levit, vix_pit, vix_vit  # noqa: F401
from edgevit.zoo.models.vix_common import PatchEmbedding, Positions, Settings
from edgevit.zoo.models.vix_cvt import ChannelNorm
from edgevit.zoo.randomize import randomize_
from edgevit.zoo.weights import load_weights

RELU = {"mixer_options": {"kernel": "relu"}}
#: One of each body and block: name, options.
KINDS = {
    "vit": ("vit_cifar10", {}),
    "vip": ("vip_cifar10", {}),
    "vip-relu": ("vip_cifar10", RELU),
    "vil": ("vil_tinyimagenet", {}),
    "vin": ("hybrid_vin_tinyimagenet", {"mixer_options": {"landmarks": 16}}),
    "fnet": ("fnet_cifar10", {}),
    "mixer": ("hybrid_mixer_cifar10", {}),
    "rope-vil": ("rope_vil_cifar10", {}),
    "rope-vin": ("hybrid_rope_vin_cifar10", {"mixer_options": {"landmarks": 16}}),
    "rope-vip": ("rope_vip_cifar10", {}),
    "levit": ("levit_cifar10", {}),
    "levit-hardswish": ("levit_tinyimagenet", {"activation": "hardswish"}),
    "levip": ("levip_cifar10", {}),
    "cct": ("cct_tinyimagenet", {}),
    "ccl": ("ccl_cifar10", {}),
    "cvt": ("cvt_tinyimagenet", {}),
    "cvn": ("cvn_cifar10", {"mixer_options": {"landmarks": 16}}),
    "pit": ("pit_cifar10", {}),
    "pip": ("hybrid_pip_cifar10", {}),
}


def side(name):
    """An image of 6 x 6 tokens."""
    return 12 if "tinyimagenet" in name else 6


def shallow(name):
    if name.startswith("cv"):
        return {"depths": (1, 0, 1)}
    return {"depths": (1, 1)} if "pi" in name else {"depth": 1}


def small(name, **options):
    """The model with 6 x 6 tokens."""
    return create_model(name, **{"image_size": side(name), "num_classes": 5, **options})


def images(name, count=4):
    """Images of very different contrast."""
    generator = torch.Generator().manual_seed(1)
    contrast = torch.tensor([0.1, 1, 3, 10])[:count].view(-1, 1, 1, 1)
    return torch.randn(count, 3, side(name), side(name), generator=generator) * contrast


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_feel_its_neighbours(kind):
    name, options = KINDS[kind]
    model = randomize_(small(name, **options))
    x = images(name)
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in x])
        together = model(x)
    assert together.shape == (4, 5)
    assert (together[0] - together[2]).abs().max() > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_training_step_leaves_finite_gradients_everywhere(kind):
    name, options = KINDS[kind]
    model = randomize_(small(name, **options)).train()
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(images(name)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
        assert parameter.isfinite().all(), parameter_name


@pytest.mark.parametrize("kind", KINDS)
def test_the_capture_computes_the_same(kind):
    name, options = KINDS[kind]
    model = randomize_(small(name, **shallow(name), **options))
    spec = TensorSpec("image", (1, 3, side(name), side(name)), "image")
    program = capture(model, [spec], dynamic_batch=True)
    x = images(name, 3)
    expected = model(x)
    assert (expected[0] - expected[2]).abs().max() > 1e-3
    torch.testing.assert_close(program(x)[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(program(x[:1])[0], expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["rope-vin", "fnet", "cvt"])
def test_models_live_on_the_meta_device(kind):
    name, options = KINDS[kind]
    with torch.device("meta"):
        model = small(name, **options)
    spec = (2, 3, side(name), side(name))
    assert model(torch.empty(spec, device="meta")).shape == (2, 5)
    moved = copy.deepcopy(small(name, **options)).to("meta")
    assert moved(torch.empty(spec, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(
    ("swapped", "own"),
    [
        ("vit_cifar10+nystrom", "vin_cifar10"),
        ("vin_cifar10+softmax", "vit_cifar10"),
        ("vit_cifar10+fourier", "fnet_cifar10"),
        ("hybrid_vit_tinyimagenet+linformer", "hybrid_vil_tinyimagenet"),
        ("rope_vin_cifar10+performer", "rope_vip_cifar10"),
        ("levit_cifar10+performer", "levip_cifar10"),
        ("cct_cifar10+nystrom", "ccn_cifar10"),
        ("cvt_tinyimagenet+linformer", "cvl_tinyimagenet"),
        ("pit_cifar10+nystrom", "pin_cifar10"),
    ],
)
def test_a_swapped_block_makes_the_papers_own_model(swapped, own):
    one, other = small(swapped), small(own)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (one, other)]
    assert shapes[0] == shapes[1]
    load_weights(one, other.state_dict())
    x = images(own)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


def test_a_block_without_the_papers_head_width_takes_the_whole_width():
    model = small("pit_cifar10+linformer", mixer_options={"rank": 8})
    mixers = [m for m in model.modules() if isinstance(m, LinformerAttention)]
    assert [m.query.out_features for m in mixers] == [128] * 4
    assert [m.tokens for m in mixers] == [37, 37, 10, 10]
    assert small("pit_cifar10+fourier")(images("pit_cifar10")).shape == (4, 5)


def test_a_block_on_maps_fits_where_there_is_no_class_token():
    x = images("levit_cifar10")
    for backbone in ("levit_cifar10", "cct_cifar10", "cvt_cifar10", "mixer_cifar10"):
        assert small(f"{backbone}+elementwise")(x).shape == (4, 5)
    for backbone in ("vit_cifar10", "pit_cifar10"):
        with pytest.raises(ShapeError, match="class token"):
            small(f"{backbone}+elementwise")


def test_options_reach_the_block():
    model = small("vip_cifar10", mixer_options={"features": 7, "kernel": "relu"})
    mixers = [m for m in model.modules() if isinstance(m, PerformerAttention)]
    assert [(m.features.shape[0], m.kernel) for m in mixers] == [(7, "relu")] * 4
    matrices = [m.features for m in mixers]
    assert not torch.equal(matrices[0], matrices[1])


def test_the_patch_embedding_is_a_linear_on_row_column_channel():
    torch.manual_seed(0)
    embedding = PatchEmbedding(Settings(image_size=6, patch=2, in_chans=3, dim=8))
    x = torch.randn(2, 3, 6, 6)
    linear = torch.randn(8, 12)
    embedding[0].weight.data = linear.view(8, 2, 2, 3).permute(0, 3, 1, 2)
    for row in range(3):
        for column in range(3):
            patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            flat = patch.permute(0, 2, 3, 1).flatten(1)
            expected = flat @ linear.T + embedding[0].bias
            torch.testing.assert_close(embedding(x)[:, 3 * row + column], expected)


def test_positions_put_the_class_token_first():
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4)
    both = Positions(4, (2, 3), class_token=True, learned=True)
    token = both.class_token.expand(3, 1, 4)
    torch.testing.assert_close(both(x), torch.cat((token, x), 1) + both.table)
    alone = Positions(4, (2, 3), class_token=True, learned=False)
    torch.testing.assert_close(alone(x), torch.cat((alone.class_token.expand(3, 1, 4), x), 1))
    table = Positions(4, (2, 3), class_token=False, learned=True)
    torch.testing.assert_close(table(x), x + table.table)
    neither = Positions(4, (2, 3), class_token=False, learned=False)
    assert neither(x) is x


def test_the_channel_norm_divides_by_the_deviation():
    torch.manual_seed(0)
    norm = ChannelNorm(8)
    norm.gain.data.uniform_(0.5, 1.5)
    norm.offset.data.normal_()
    x = torch.randn(2, 8, 3, 3)
    x[0] *= 1e-5  # so small that the place of the 1e-5 matters
    mean, deviation = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
    expected = (x - mean) / (deviation + 1e-5) * norm.gain + norm.offset
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


def test_the_second_residual_of_cct_starts_from_the_normalised_tensor():
    torch.manual_seed(0)
    layer = small("cct_cifar10").layers[0]
    x = torch.randn(2, 36, 128)
    y = layer.norm2(x + layer.mixer(layer.norm1(x)))
    torch.testing.assert_close(layer(x), y + layer.mlp(y))


def test_sequence_pooling_is_a_weighted_mean():
    torch.manual_seed(0)
    pool = small("cct_cifar10").pool
    x = torch.randn(2, 9, 128)
    weights = (x @ pool.score.weight[0] + pool.score.bias).softmax(1)
    torch.testing.assert_close(pool(x), (x * weights[..., None]).sum(1))


@pytest.mark.parametrize("name", ["levit_cifar10", "cvt_cifar10"])
def test_attention_on_maps_is_softmax_attention_of_its_projections(name):
    torch.manual_seed(0)
    mixer = next(m for m in randomize_(small(name)).modules() if hasattr(m, "query"))
    x = torch.randn(1, 128, 5, 4)
    if name.startswith("levit"):
        query, key, value = mixer.query(x), mixer.key(x), mixer.value(x)
    else:
        query, (key, value) = mixer.query(x), mixer.key_value(x).chunk(2, -1)
    out = []
    for q, k, v in zip(*(t[0].chunk(4, 1) for t in (query, key, value)), strict=True):
        out.append((q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v)
    mixed = torch.cat(out, 1).T.reshape(1, -1, 5, 4)
    expected = mixer.proj(F.gelu(mixed)) if name.startswith("levit") else mixer.proj(mixed)
    if name.startswith("levit"):
        expected = mixer.norm(expected)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_levit_starts_without_its_attention():
    model = small("levit_cifar10")
    assert not any(layer.mixer.norm.weight.any() for layer in model.layers)


def test_pooling_keeps_the_class_token_apart():
    torch.manual_seed(0)
    pooling = small("pit_cifar10").layers[2]
    x = torch.randn(2, 37, 128)
    out = pooling(x)
    assert out.shape == (2, 10, 256)
    torch.testing.assert_close(out[:, 0], pooling.class_token(x[:, 0]))
    moved = x.clone()
    moved[:, 0] += 1
    assert torch.equal(pooling(moved)[:, 1:], out[:, 1:])
    depthwise = pooling.spatial[0](x[:, 1:].transpose(1, 2).reshape(2, 128, 6, 6))
    torch.testing.assert_close(out[:, 1:], pooling.spatial[1](depthwise).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "shallow"), [("vit_cifar10", {"depth": 0}), ("pit_cifar10", {"depths": (0, 0)})]
)
def test_the_head_reads_the_class_token_alone(name, shallow):
    model = randomize_(small(name, **shallow))
    logits = model(images(name))
    # Without layers nothing has reached the class token.
    torch.testing.assert_close(logits, logits[:1].expand(4, 5))
    token = model.positions.class_token[0] + model.positions.table[0, :1]
    if name.startswith("pit"):
        token = model.layers[0].class_token(token)
    torch.testing.assert_close(logits[:1], model.head(model.norm(token)))


def test_the_head_of_the_mixer_reads_the_mean_of_the_normalised_tokens():
    model = randomize_(small("mixer_cifar10", depth=0))
    x = images("mixer_cifar10")
    tokens = model.norm(model.embedding(x))
    torch.testing.assert_close(model(x), model.head(tokens.mean(1)))


def test_nothing_stands_between_the_convolutions_of_the_hybrid_embedding():
    embedding = small("hybrid_vit_tinyimagenet").embedding
    one, other = images("vit_tinyimagenet", 2).split(1)
    zero = embedding(torch.zeros_like(one))
    both = embedding(one + other) - zero
    torch.testing.assert_close(
        both, embedding(one) + embedding(other) - 2 * zero, rtol=1e-4, atol=1e-5
    )
    assert both.shape == (1, 36, 128)


def test_rotary_models_have_no_learned_positions():
    assert "positions.table" not in small("rope_vit_cifar10").state_dict()
    assert "positions.class_token" in small("rope_vit_cifar10").state_dict()


def test_images_need_not_be_square():
    x = torch.randn(2, 3, 8, 12)
    names = ("vin_tinyimagenet", "hybrid_rope_vil_cifar10", "cct_tinyimagenet", "cvt_tinyimagenet")
    for name in (*names, "levip_cifar10", "pit_cifar10"):
        assert create_model(name, image_size=(8, 12), num_classes=5)(x).shape == (2, 5)


@pytest.mark.parametrize("name", ["vin_cifar10", "cct_cifar10", "hybrid_pip_cifar10"])
def test_weights_of_another_image_size_are_resized(name):
    source, target = small(name), small(name, image_size=(4, 8))
    with torch.no_grad():
        source.positions.table[:] = 0.25
        source.positions.table[:, 0] = 3.0
    state = target.adapt_state(source.state_dict())
    load_weights(target, state)
    prefix = target.positions.prefix_tokens
    assert target.positions.table.shape == (1, 32 + prefix, 128)
    if prefix:
        torch.testing.assert_close(target.positions.table[:, 1:], torch.full((1, 32, 128), 0.25))
        assert (target.positions.table[:, 0] == 3).all()
    else:
        assert target.positions.table[0, 0].mean() > 1  # the corner that was 3
    assert source.adapt_state(source.state_dict()).keys() == source.state_dict().keys()


def test_weights_that_cannot_be_resized_are_refused():
    source = create_model("vit_cifar10", image_size=(4, 8))
    with pytest.raises(WeightsError, match="no square map"):
        small("vit_cifar10").adapt_state(source.state_dict())
    linformer_state = small("vil_cifar10").state_dict()
    larger = small("vil_cifar10", image_size=8)
    with pytest.raises(WeightsError, match=r"sequence: \(37, 64\), the model has \(65, 64\)"):
        load_weights(larger, larger.adapt_state(linformer_state))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("vit_tinyimagenet", {"image_size": 33}, ShapeError, "multiples of 2, got 33"),
        ("cvt_tinyimagenet", {"image_size": 7}, ShapeError, "multiples of 2, got 7"),
        ("vit_cifar10", {"num_classes": 0}, OptionError, "num_classes"),
        ("vit_cifar10", {"pool": "max"}, OptionError, "pool: expected class or mean"),
        ("vit_cifar10", {"patch": 0}, OptionError, "patch"),
        ("vit_cifar10", {"heads": 3}, ShapeError, "3 heads do not divide a width of 128"),
        ("pit_cifar10", {"heads": 0}, ShapeError, "0 heads"),
        ("vit_cifar10", {"mixer": None}, OptionError, "mixer"),
        ("vit_cifar10", {"kernel": "relu"}, OptionError, "kernel: expected an option of this"),
        ("vit_cifar10", {"mixer_options": {"kernel": 1}}, OptionError, "option of block softmax"),
        ("vip_cifar10", {"mixer_options": {"dim": 64}}, OptionError, "dim: expected an option"),
        ("vip_cifar10", {"mixer_options": {"kernel": "elu"}}, OptionError, "exp or relu"),
        ("fnet_cifar10", {"rope": True}, OptionError, "rope: expected an option of block fourier"),
        ("levit_cifar10", {"activation": "relu"}, OptionError, "gelu or hardswish"),
        ("levit_cifar10", {"rope": True}, OptionError, "rope: expected an option of this model"),
        ("vit_cifar10+mlp_mixer", {"mixer_options": {"expansion": 0}}, OptionError, "expansion"),
    ],
)
def test_what_cannot_be_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        small(name, **options)


@pytest.mark.parametrize("name", ["vit_cifar10", "levit_cifar10", "cvp_cifar10", "pit_cifar10"])
def test_an_image_of_another_size_is_refused(name):
    with pytest.raises(ShapeError, match="made for images of 6 x 6, got 8 x 6"):
        small(name)(torch.zeros(1, 3, 8, 6))

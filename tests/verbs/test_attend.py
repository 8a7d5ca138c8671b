"""Attention over photographs: SimA's magnitudes, EleViT's maps, the class token's weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch import nn

from edgevit.cli.app import make_app
from edgevit.errors import OptionError, OutputError, UsageError
from edgevit.preprocess import crop_image, load_image
from edgevit.verbs.attend import attend
from edgevit.zoo.factory import create_model
from edgevit.zoo.randomize import randomize_

DEIT = {"image_size": 64, "options": {"width": 24, "heads": 3, "depth": 3}}
ELEVIT = {
    "image_size": 64,
    "options": {"widths": (16, 24, 32), "depths": (1, 1, 2), "stem": (8, 8)},
}


def factory() -> nn.Module:
    return create_model("deit_tiny+sima", image_size=64, width=24, heads=3, depth=2)


@pytest.fixture(scope="module")
def cat(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.fromarray(data.cat()).save(path)
    return path


@pytest.fixture(scope="module")
def astronaut(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    return path


def inputs_of(attended):
    """The query, key and value that the drawn block computes from the photograph."""
    module, seen = attended.source.module, {}
    block = module.get_submodule(attended.maps[0].layer)
    handle = block.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    with torch.no_grad():
        module(
            torch.from_numpy(load_image(attended.image, (64, 64), attended.source.preprocessing))
        )
    handle.remove()
    return block, seen["x"]


def heads_of(block, x):
    return [p.unflatten(2, (block.heads, -1)).movedim(2, 1)[0] for p in block.qkv(x).chunk(3, -1)]


def test_simas_maps_are_the_norms_of_normalised_query_and_key(cat):
    attended = attend("deit_tiny+sima", cat, **DEIT)
    assert (attended.kind, attended.layer, attended.layers) == ("sima", 3, 3)
    assert [one.name for one in attended.maps] == ["query", "key"]
    with torch.no_grad():
        block, x = inputs_of(attended)
        for one, part in zip(attended.maps, heads_of(block, x), strict=False):
            normed = part / part.abs().sum(1, keepdim=True)
            expected = normed.permute(1, 0, 2).flatten(1).norm(dim=1)[1:].reshape(4, 4)
            np.testing.assert_allclose(one.values, expected.numpy(), rtol=1e-5)
            assert np.ptp(one.values) > 1e-3


def test_one_head_is_part_of_all(cat):
    whole = attend("deit_tiny+sima", cat, **DEIT).maps[0].values
    heads = [attend("deit_tiny+sima", cat, head=h, **DEIT).maps[0].values for h in (1, 2, 3)]
    np.testing.assert_allclose(whole**2, sum(h**2 for h in heads), rtol=1e-5)
    assert np.abs(heads[0] - heads[1]).max() > 1e-3


def test_the_class_tokens_weights_are_shared_out_over_patches_and_itself(cat):
    attended = attend("deit_tiny", cat, layer=-2, **DEIT)
    (one,) = attended.maps
    assert (attended.kind, attended.layer, one.name) == ("softmax", 2, "class token")
    with torch.no_grad():
        block, x = inputs_of(attended)
        query, key, _ = heads_of(block, x)
        weights = (query[:, :1] @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(0)[0]
    np.testing.assert_allclose(one.values, weights[1:].reshape(4, 4).numpy(), rtol=1e-5)
    assert one.values.sum() == pytest.approx(1 - float(weights[0]), rel=1e-5)


def test_without_a_class_token_it_is_what_every_token_is_paid(cat):
    options = {"image_size": (32, 64), "options": {"depth": 1}}
    (one,) = attend("mixer_cifar10+softmax", cat, **options).maps
    assert (one.name, one.values.shape) == ("received", (32, 64))
    assert one.values.sum() == pytest.approx(1, rel=1e-4)


def test_elevits_map_is_what_the_value_is_multiplied_with(cat):
    attended = attend("elevit", cat, **ELEVIT)
    (one,) = attended.maps
    assert (attended.kind, attended.layer, attended.layers) == ("elementwise", 4, 4)
    first = attend("elevit", cat, layer=1, head=5, **ELEVIT)
    assert first.maps[0].values.shape == (8, 8)
    with torch.no_grad():
        block, x = inputs_of(attended)
        weights = block.core(block.query(x), block.key(x), torch.ones_like(x))
    np.testing.assert_allclose(one.values, weights[0].mean(0).numpy(), rtol=1e-5)


def test_another_photograph_gives_other_maps(cat, astronaut):
    maps = [attend("elevit", path, layer=1, **ELEVIT).maps[0].values for path in (cat, astronaut)]
    assert np.abs(maps[0] - maps[1]).max() > 1e-3 * np.abs(maps[0]).max()


def test_a_model_of_the_users_own_with_our_blocks_is_drawn(cat):
    attended = attend(f"{__name__}:factory", cat, image_size=64)
    assert attended.layers == 2
    assert not attended.random


def test_the_png_shows_the_picture_and_each_map_over_it(cat, tmp_path):
    attended = attend("deit_tiny+sima", cat, **DEIT)
    attended.draw(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as file:
        sheet = np.asarray(file).astype(int)
    assert file.format == "PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
    side, margin = 320, 8
    panels = [
        sheet[margin : margin + side, margin + i * (side + margin) :][:, :side] for i in range(3)
    ]
    shown = np.asarray(crop_image(cat, (side, side), attended.source.preprocessing))
    assert (panels[0] == shown).all()
    for panel, one in zip(panels[1:], attended.maps, strict=True):
        heat = (panel - 0.45 * shown)[..., 0] - (panel - 0.45 * shown)[..., 2]  # red less blue
        blocks = heat.reshape(4, side // 4, 4, side // 4).mean((1, 3))
        assert np.corrcoef(blocks.ravel(), one.normalized.ravel())[0, 1] > 0.8


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("deit_tiny", {"kind": "fourier"}, OptionError, "kind: expected sima or"),
        ("deit_tiny", {"kind": "sima"}, UsageError, "has no sima; it has softmax attention"),
        ("deit_tiny", {"layer": 4}, OptionError, "layer: expected 1 to 3, or -3 to -1"),
        ("deit_tiny", {"layer": 0}, OptionError, "layer"),
        ("deit_tiny", {"head": 4}, OptionError, "head: expected 1 to 3"),
        ("deit_tiny+xca", {}, UsageError, "has no attention that can be drawn"),
    ],
)
def test_what_cannot_be_drawn_says_why(cat, model, options, error, message):
    with pytest.raises(error, match=message):
        attend(model, cat, **options, **DEIT)


def test_no_picture_and_no_place_for_one_are_told(cat, tmp_path):
    with pytest.raises(OptionError, match="a picture that can be read"):
        attend("deit_tiny", tmp_path / "none.png", **DEIT)
    attended = attend("deit_tiny", cat, **DEIT)
    with pytest.raises(OutputError, match="cannot be written"):
        attended.draw(tmp_path / "nowhere" / "out.png")


def test_the_command_says_what_it_drew_and_that_weights_are_random(cat, tmp_path, capsys):
    app, out = make_app("attend"), tmp_path / "out.png"
    options = ["--image-size=64", "--set=width=24", "--set=depth=2"]
    arguments = ["attend", "deit_tiny+sima", str(cat), f"-o{out}", *options]
    app([*arguments, "--json"], standalone_mode=False)
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["layers"] == 2
    assert told["model"]["weights"] == {"kind": "random", "seed": 0}
    assert {m["name"]: m["size"] for m in told["maps"]} == {"query": [4, 4], "key": [4, 4]}
    assert "weights are random" in captured.err
    assert out.stat().st_size > 10_000


def test_weights_that_are_given_are_used_and_nothing_is_said(cat, tmp_path, capsys):
    model = randomize_(create_model("deit_tiny+sima", image_size=64, width=24, depth=2), 3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    app = make_app("attend")
    options = ["--image-size=64", "--set=width=24", "--set=depth=2"]
    weights = f"--weights={tmp_path / 'w.safetensors'}"
    place = f"-o{tmp_path / 'out.png'}"
    app(["attend", "deit_tiny+sima", str(cat), place, weights, *options], standalone_mode=False)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "query" in captured.out

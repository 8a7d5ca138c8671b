import textwrap

import pytest
import torch

from edgevit.capture import capture
from edgevit.errors import FactoryError, ShapeError, UnknownNameError
from edgevit.zoo.counting import count_parameters
from edgevit.zoo.factory import block_inputs, create_block, from_factory
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.registry import list_blocks


def write(folder, name, text):
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


@pytest.mark.parametrize("spec", ["mine:make", "mine:Net", "mine:net", "mine:Inner.make"])
def test_a_factory_a_class_a_module_or_an_attribute(in_tmp, spec):
    write(
        in_tmp,
        "mine",
        """
        from torch import nn
        class Net(nn.Linear):
            def __init__(self): super().__init__(2, 3)
        make = lambda: Net()
        net = Net()
        class Inner:
            make = staticmethod(make)
        """,
    )
    module = from_factory(spec)
    assert not module.training
    assert module(torch.zeros(1, 2)).shape == (1, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere_at_all:make", "ModuleNotFoundError"),
        ("broken:absent", "AttributeError"),
        ("broken:fails", "ValueError: no such luck"),
        ("broken:nothing", "returned NoneType, expected an nn.Module"),
        ("broken:", "AttributeError"),
    ],
)
def test_a_factory_that_does_not_work(in_tmp, spec, message):
    write(
        in_tmp,
        "broken",
        """
        def fails(): raise ValueError("no such luck")
        def nothing(): pass
        """,
    )
    with pytest.raises(FactoryError, match=message):
        from_factory(spec)


@pytest.mark.parametrize("name", ["softmax", "elementwise"])
@pytest.mark.parametrize("projections", [False, True])
def test_blocks_run_and_capture_at_their_inputs(name, projections):
    shape = {"tokens": 16, "head_dim": 8, "heads": 2, "projections": projections}
    block, specs = create_block(name, **shape), block_inputs(name, **shape)
    assert [s.name for s in specs] == (["x"] if projections else ["query", "key", "value"])
    inputs = [torch.randn(s.shape) for s in specs]
    program = capture(block, specs)
    torch.testing.assert_close(program(*inputs)[0], block(*inputs), rtol=0, atol=1e-6)
    assert block(*inputs).shape == inputs[0].shape


def test_softmax_core_is_scaled_dot_product_attention():
    block = create_block("softmax", tokens=16, head_dim=8, heads=2)
    q, k, v = (torch.randn(1, 2, 16, 8) for _ in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(block(q, k, v), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 15, "head_dim": 8}, "square number; got 15"),
        ({"tokens": 0, "head_dim": 8}, "at least one token"),
        ({"tokens": 16, "head_dim": 8, "heads": 0}, "0 heads"),
    ],
)
def test_shapes_that_do_not_fit(options, message):
    with pytest.raises(ShapeError, match=message):
        create_block("elementwise", **options)


def test_an_unknown_block():
    with pytest.raises(UnknownNameError, match="unknown block"):
        create_block("sofmax", tokens=16, head_dim=8)


@pytest.mark.parametrize("name", ["softmax", "elementwise"])
@pytest.mark.parametrize("layout", ["tokens", "map"])
def test_any_block_in_any_backbone(name, layout):
    mixer = make_mixer(name, dim=8, heads=2, tokens=(4, 4), layout=layout).eval()
    x = torch.randn(3, 8, 4, 4)
    tokens = x.flatten(2).transpose(1, 2)
    out = mixer(tokens if layout == "tokens" else x)
    assert out.shape == (tokens if layout == "tokens" else x).shape
    other = make_mixer(
        name, dim=8, heads=2, tokens=(4, 4), layout="map" if layout == "tokens" else "tokens"
    ).eval()
    key = "block." if hasattr(mixer, "block") else ""
    state = {k.removeprefix(key): v for k, v in mixer.state_dict().items()}
    target = other.block if hasattr(other, "block") else other
    target.load_state_dict(state)
    back = other(x if layout == "tokens" else tokens)
    as_map = out.transpose(1, 2).reshape(3, 8, 4, 4) if layout == "tokens" else out
    back_map = back if layout == "tokens" else back.transpose(1, 2).reshape(3, 8, 4, 4)
    torch.testing.assert_close(as_map, back_map, rtol=1e-5, atol=1e-6)


def test_a_map_block_beside_a_class_token_says_why_not():
    with pytest.raises(ShapeError, match="has a class token"):
        make_mixer("elementwise", dim=8, heads=2, tokens=(4, 4), prefix_tokens=1)


@pytest.mark.parametrize("name", sorted(set(list_blocks()) - {"cascaded_group"}))
def test_a_core_holds_no_more_than_it_uses(name):
    core = create_block(name, tokens=16, head_dim=4, heads=2)
    tensors = [torch.randn(s.shape) for s in block_inputs(name, tokens=16, head_dim=4, heads=2)]
    core(*(tensor.requires_grad_() for tensor in tensors)).sum().backward()
    assert all(parameter.grad is not None for parameter in core.parameters())
    whole = create_block(name, tokens=16, head_dim=4, heads=2, projections=True)
    assert count_parameters(core) < count_parameters(whole) or name in ("fourier", "mlp_mixer")

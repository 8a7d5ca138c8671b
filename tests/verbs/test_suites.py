"""Suites are what they say: real names, possible shapes, equal work where the paper fixes it."""

import pytest

from edgevit.errors import OptionError, UnknownNameError, UsageError
from edgevit.source import BlockSpec
from edgevit.verbs.suites import SUITES, Suite, find_suite, fixed_order, sweep
from edgevit.zoo.factory import block_inputs, create_block
from edgevit.zoo.registry import list_models, model_info

TABLE_3 = find_suite("sima-table3").subjects


@pytest.mark.parametrize("name", SUITES)
def test_every_subject_can_be_made(name):
    for subject in SUITES[name].subjects:
        if isinstance(subject, str):
            model_info(subject)
        elif subject.tokens * subject.head_dim <= 256 * 64:
            shape = {"tokens": subject.tokens, "head_dim": subject.head_dim, "heads": subject.heads}
            create_block(subject.name, **shape, **subject.options)


def test_the_default_suite_has_one_model_of_each_family_and_table_3():
    suite = find_suite("default")
    models = [s for s in suite.subjects if isinstance(s, str)]
    families = [model_info(name).module for name in models]
    assert sorted(families) == sorted({model_info(name).module for name in list_models()})
    assert suite.subjects[len(models) :] == TABLE_3


def test_table_3_has_the_papers_blocks_at_its_shapes():
    shapes = {}
    for spec in TABLE_3:
        shapes.setdefault((spec.tokens, spec.head_dim, spec.heads), []).append(spec.name)
    assert shapes == {
        (256, 64, 8): ["softmax", "elu", "sima"],
        (64, 256, 8): ["soft", "xca", "elu", "sima"],
    }
    assert find_suite("sima-table3").runs == 1000
    assert all(spec in find_suite("sima-figure1").subjects for spec in TABLE_3)


def largest_map(spec: BlockSpec) -> set[tuple[int, ...]]:
    """Shapes of the attention maps that a block's captured graph multiplies with."""
    import torch

    module = create_block(
        spec.name, tokens=spec.tokens, head_dim=spec.head_dim, heads=spec.heads, **spec.options
    )
    inputs = block_inputs(spec.name, tokens=spec.tokens, head_dim=spec.head_dim, heads=spec.heads)
    program = torch.export.export(module, tuple(torch.randn(i.shape) for i in inputs))
    values = [n.meta["val"] for n in program.graph.nodes if "matmul" in str(n.target)]
    return {tuple(v.shape[-2:]) for v in values}


@pytest.mark.parametrize("spec", TABLE_3, ids=lambda s: s.label)
def test_the_order_is_the_tables_whatever_would_be_cheaper(spec):
    maps = largest_map(spec)
    side = spec.tokens if spec.tokens > spec.head_dim else spec.head_dim
    assert (side, side) in maps
    other = min(spec.tokens, spec.head_dim)
    assert (other, other) not in maps


def test_projections_are_an_option():
    suite = find_suite("default").with_projections()
    blocks = [s for s in suite.subjects if isinstance(s, BlockSpec)]
    assert blocks
    assert all(block.projections for block in blocks)
    assert not any(block.projections for block in TABLE_3)


def test_a_suite_without_subjects_or_with_twins_is_none():
    with pytest.raises(UsageError, match="suite x needs subjects"):
        Suite("x", "nothing", ())
    with pytest.raises(UsageError, match="no two alike"):
        Suite("x", "twins", ("elevit", "elevit"))


def test_an_unknown_suite_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        find_suite("sima-table-3")
    assert "did you mean sima-table3" in str(caught.value.hint)


def test_a_sweep_is_every_combination_once():
    blocks = [BlockSpec("softmax", 256, 64), BlockSpec("sima", 256, 64)]
    swept = sweep(blocks, {"n": [64, 128, 64], "d": [32, 16]})
    assert [b.label for b in swept] == [
        f"{name}-n{n}-d{d}-h8" for n in (64, 128) for d in (32, 16) for name in ("softmax", "sima")
    ]
    assert [b.heads for b in sweep(blocks[:1], {"h": [1, 2]})] == [1, 2]
    assert sweep(blocks, {}) == blocks


@pytest.mark.parametrize("axes", [{"x": [1]}, {"n": []}, {"d": [0]}])
def test_a_sweep_over_what_is_no_size(axes):
    with pytest.raises(OptionError, match="sweep: expected"):
        sweep([BlockSpec("softmax", 16, 8)], axes)


def test_an_order_goes_to_the_blocks_that_have_one():
    assert fixed_order(BlockSpec("sima", 16, 8), "nn").options == {"order": "nn"}
    assert fixed_order(BlockSpec("soft", 16, 8), "dd").options == {"order": "dd"}
    for name in ("softmax", "xca"):
        assert fixed_order(BlockSpec(name, 16, 8), "nn") == BlockSpec(name, 16, 8)
    with pytest.raises(OptionError, match="order: expected nn or dd"):
        fixed_order(BlockSpec("sima", 16, 8), "auto")

import subprocess
import sys

import pytest

from edgevit.errors import OptionError, ShapeError, UnknownNameError
from edgevit.zoo import block_info, list_blocks, list_models, model_info
from edgevit.zoo.registry import build_model


def test_listing_needs_no_torch():
    code = (
        "import sys; from edgevit.zoo import list_models, list_blocks, model_info; "
        "assert list_models() and list_blocks(); model_info('elevit'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wildcards_narrow_the_list():
    assert list_models("elevit_*noff") == [
        "elevit_fvdot_noff",
        "elevit_noff",
        "elevit_qkdot_fvdot_noff",
        "elevit_qkdot_noff",
    ]
    assert list_models(["elevit", "nothing_*"]) == ["elevit"]
    assert list_blocks("soft*") == [n for n in list_blocks() if n.startswith("soft")]


def test_names_ignore_case():
    assert model_info("EleViT") == model_info("elevit")


@pytest.mark.parametrize(
    ("look_up", "wrong", "near"),
    [
        (model_info, "elevitt", "elevit"),
        (model_info, "elevit_qkdott", "elevit_qkdot"),
        (block_info, "softmx", "softmax"),
    ],
)
def test_an_unknown_name_suggests_near_ones(look_up, wrong, near):
    with pytest.raises(UnknownNameError) as caught:
        look_up(wrong)
    assert near in caught.value.nearest


def test_backbone_plus_unknown_block_names_the_block():
    with pytest.raises(UnknownNameError, match="unknown block 'sofmax'"):
        model_info("elevit+sofmax")


def test_a_backbone_that_takes_no_other_block_says_so():
    with pytest.raises(OptionError, match="mixer: expected window"):
        build_model("swin_tiny+softmax", num_classes=10, image_size=224, in_chans=3)


def test_counts_are_in_the_index():
    assert model_info("elevit").params == 23_425_310
    assert model_info("elevit").family == "elevit"


def test_heads_must_divide():
    from edgevit.zoo.factory import block_inputs

    with pytest.raises(ShapeError, match="0 heads"):
        block_inputs("softmax", tokens=16, head_dim=8, heads=0)

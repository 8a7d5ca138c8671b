"""The names that the papers' models go by, and ``backbone+block`` as a grammar."""

import pytest
import torch

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.registry import build_model, list_blocks, list_models, model_info

ENDINGS = ("_cifar10", "_tinyimagenet")
MIXERS = ("vit", "vip", "vil", "vin")
VIX = (*MIXERS, "fnet", "mixer")
BODIES = (
    "levit",
    "levip",
    "levil",
    "levin",
    "cct",
    "ccp",
    "ccl",
    "ccn",
    "cvt",
    "cvp",
    "cvl",
    "cvn",
)
POOLED = ("pit", "pip", "pin")
SIMA_HOSTS = (
    "deit_tiny", "deit_small", "xcit_small_12_p16", "xcit_tiny_12_p8", "xcit_tiny_24_p16", "cvt_13",
)  # fmt: skip
LESS_HOSTS = (
    "vit_tiny", "vit_small", "deit_tiny", "deit_small", "pvt_tiny", "pvt_small", "swin_tiny",
    "swin_small", "deepvit_tiny", "deepvit_small", "deepvit_small_12", "ceit_tiny", "ceit_small",
    "hvt_tiny", "hvt_small", "hvt_small_0", "hvt_small_4",
)  # fmt: skip
NAMES = [
    *(f"efficientvit_m{i}" for i in range(6)),
    *("efficientvit_m5_384", "efficientvit_m5_512"),
    *(name + block for name in SIMA_HOSTS for block in ("", "+sima")),
    *("deit_small+sima_1head", "deit_small+sima_relu", "deit_small_1head", "soft_small"),
    *(f"soft_tiny{b}" for b in ("", "+softmax", "+linformer", "+performer", "+nystrom", "+soft")),
    *("xcit_small_12_p16+efficient", "xcit_small_12_p16+cosformer"),
    *(h + m + end for h in ("", "hybrid_") for m in VIX for end in ENDINGS),
    *(body + end for body in BODIES for end in ENDINGS),
    *(f"{h}{m}_cifar10" for h in ("", "hybrid_") for m in POOLED),
    *(f"{h}rope_{m}_cifar10" for h in ("", "hybrid_") for m in MIXERS),
    *("pvt_tiny", "pvt_small", "pvt_medium", "lavit_t", "lavit_s", "lavit_b"),
    *(name + block for name in LESS_HOSTS for block in ("", "+la")),
    *("elevit", "swiftformer_l3", "efficientformerv2_l"),
    *(f"efficientformerv2_l+elementwise{last}" for last in ("", "_last")),
]
#: The Vision Xformers' own names; those that other papers have too need the data set behind them.
ALIASES = [
    *(h + m for h in ("", "hybrid_") for m in VIX if h + m not in ("vit", "mixer")),
    *(body for body in BODIES if body not in ("levit", "cct", "cvt")),
    *(h + m for h in ("", "hybrid_") for m in POOLED if h + m != "pit"),
    *(f"{h}rope_{m}" for h in ("", "hybrid_") for m in MIXERS),
]
BLOCKS = (
    "softmax", "elementwise", "sima", "xca", "elu", "soft", "efficient", "cosformer", "linformer",
    "performer", "nystrom", "fourier", "mlp_mixer", "cascaded_group", "less_attention",
    "swift_additive",
)  # fmt: skip


def built(name: str, **options):
    info = model_info(name)
    made = {"num_classes": info.num_classes, "image_size": info.image_size, "in_chans": 3} | options
    with torch.device("meta"):
        return build_model(name, **made)


def test_every_block_of_the_papers_is_there():
    assert set(BLOCKS) <= set(list_blocks())


@pytest.mark.parametrize("alias", ALIASES)
def test_the_papers_own_names_are_aliases(alias):
    info = model_info(alias)
    assert info.name == f"{alias}_cifar10"
    assert info.paper == "vision-xformers"


def test_every_name_is_registered_or_follows_from_the_grammar():
    for name in NAMES:
        assert model_info(name).name == {"soft_tiny+soft": "soft_tiny"}.get(name, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) | set(list_models())))
def test_every_name_can_be_created(name):
    model = built(name)
    assert sum(p.numel() for p in model.parameters()) > 1e5


# -- any block in any backbone ---------------------------------------------------------------------

#: A model of every body that blocks can be put in.
BACKBONES = (
    "ceit_tiny", "cvt_13", "deepvit_tiny", "deit_tiny", "efficientformerv2_l", "efficientvit_m0",
    "elevit", "hvt_tiny", "lavit_t", "pvt_tiny", "soft_tiny", "swiftformer_l3", "swin_tiny",
    "xcit_tiny_12_p8", "vit_cifar10", "hybrid_vit_cifar10", "rope_vit_cifar10", "levit_cifar10",
    "cct_cifar10", "cvt_cifar10", "pit_cifar10", "mixer_cifar10", "fnet_cifar10",
)  # fmt: skip


def test_every_family_is_among_the_backbones():
    assert {model_info(name).family for name in list_models()} == {
        model_info(name).family for name in BACKBONES
    }


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_block_fits_or_the_backbone_says_why(backbone, block):
    try:
        model = built(f"{backbone}+{block}")
    except (ShapeError, OptionError) as error:
        refusal = error
    else:
        assert sum(p.numel() for p in model.parameters()) > 1e5
        return
    told = f"{refusal} {refusal.hint}"
    assert block in told or "expected" in told or "got" in told

"""Vision Xformers: parameters and MACs of every row of the paper's tables.

Parameters are exact by both rules: the published one (``count_torchsummary``) and all trainable
scalars. MACs are those of an independent reading of the paper, which counts nothing for FNet's
transform.
"""

import pytest
import torch
from torch import nn

from edgevit.tensorspec import TensorSpec
from edgevit.zoo.attention import fourier, linformer, mlp_mixer, nystrom, performer  # noqa: F401
from edgevit.zoo.counting import count_macs, count_parameters, count_torchsummary
from edgevit.zoo.factory import create_model
from edgevit.zoo.models import vix_cct, vix_cvt, vix_levit, vix_pit, vix_vit  # noqa: F401
from edgevit.zoo.registry import list_models, model_info

#: The published count (for rotary positions: what its rule gives), all scalars, MACs in M.
CIFAR10 = {
    "vit": (530_442, 661_770, 1613.6),
    "vip": (531_978, 663_306, 768.7),
    "vil": (415_754, 809_482, 495.8),
    "vin": (530_970, 662_298, 889.4),
    "fnet": (267_786, 399_114, 269.1),
    "mixer": (8_533_002, 8_533_002, 1208.4),
    "hybrid_vit": (623_178, 754_506, 1708.5),
    "hybrid_vip": (624_714, 756_042, 863.6),
    "hybrid_vil": (508_490, 902_218, 590.7),
    "hybrid_vin": (623_706, 755_034, 984.2),
    "hybrid_fnet": (360_522, 491_850, 364.0),
    "hybrid_mixer": (8_625_738, 8_625_738, 1303.2),
    "levit": (624_970, 624_970, 1705.9),
    "levip": (622_410, 622_410, 862.8),
    "levil": (506_186, 768_330, 590.2),
    "levin": (621_402, 621_402, 953.5),
    "cct": (905_547, 1_036_619, 1994.3),
    "ccp": (907_083, 1_038_155, 1151.3),
    "ccl": (790_859, 1_184_075, 878.6),
    "ccn": (906_075, 1_037_147, 1242.0),
    "cvt": (1_099_786, 1_102_602, 3267.8),
    "cvp": (827_914, 830_730, 1073.1),
    "cvl": (711_690, 976_650, 800.5),
    "cvn": (826_906, 829_722, 1163.8),
    "pit": (897_034, 1_028_362, 993.0),
    "pin": (897_562, 1_028_890, 699.1),
    "pip": (898_570, 1_029_898, 565.6),
    "hybrid_pit": (989_770, 1_121_098, 1087.8),
    "hybrid_pin": (990_298, 1_121_626, 793.9),
    "hybrid_pip": (991_306, 1_122_634, 660.5),
    "rope_vit": (530_442, 530_570, 1613.6),
    "hybrid_rope_vit": (623_178, 623_306, 1708.5),
    "rope_vip": (531_978, 532_106, 768.7),
    "hybrid_rope_vip": (624_714, 624_842, 863.6),
    # With one projection of the sequence for a rotated key and an unrotated value it would be 571.4
    # and 666.2; there are two.
    "rope_vil": (464_906, 727_434, 571.4 + 33.6),
    "hybrid_rope_vil": (557_642, 820_170, 666.2 + 33.6),
    "rope_vin": (530_970, 531_098, 889.4),
    "hybrid_rope_vin": (623_706, 623_834, 984.2),
}
TINY_IMAGENET = {
    "vit": (556_104, 687_432, 1614.8),
    "vip": (557_640, 688_968, 769.9),
    "vil": (441_416, 835_144, 497.0),
    "vin": (556_632, 687_960, 890.6),
    "fnet": (293_448, 424_776, 270.3),
    "mixer": (8_558_664, 8_558_664, 1209.6),
    "hybrid_vit": (647_688, 779_016, 1708.5),
    "hybrid_vip": (649_224, 780_552, 863.6),
    "hybrid_vil": (533_000, 926_728, 590.7),
    "hybrid_vin": (648_216, 779_544, 984.2),
    "hybrid_fnet": (385_032, 516_360, 364.0),
    "hybrid_mixer": (8_650_248, 8_650_248, 1303.2),
    "levit": (649_480, 649_480, 1705.9),
    "levip": (646_920, 646_920, 862.8),
    "levil": (530_696, 792_840, 590.2),
    "levin": (645_912, 645_912, 953.5),
    "cct": (930_057, 1_061_129, 1994.4),
    "ccp": (931_593, 1_062_665, 1151.3),
    "ccl": (815_369, 1_208_585, 878.7),
    "ccn": (930_585, 1_061_657, 1242.0),
    "cvt": (1_124_296, 1_127_112, 3267.8),
    "cvp": (852_424, 855_240, 1073.1),
    "cvl": (736_200, 1_001_160, 800.5),
    "cvn": (851_416, 854_232, 1163.8),
}
ALL = {f"{name}_cifar10": counts for name, counts in CIFAR10.items()} | {
    f"{name}_tinyimagenet": counts for name, counts in TINY_IMAGENET.items()
}
#: Of FNet's four transforms: 2 N C (N + C) each, N = 1025, C = 128.
TRANSFORMS_M = 4 * 2 * 1025 * 128 * (1025 + 128) / 1e6


@pytest.mark.parametrize("name", ALL)
def test_parameters_and_macs(name):
    published, scalars, macs_m = ALL[name]
    info = model_info(name)
    with torch.device("meta"):
        model = create_model(name)
    image = [TensorSpec("image", (1, 3, info.image_size, info.image_size), "image")]
    assert count_torchsummary(model, image) == published
    assert count_parameters(model) == scalars
    expected = macs_m + ("fnet" in name) * TRANSFORMS_M
    assert count_macs(model, image) / 1e6 == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize("name", ALL)
def test_what_is_said_of_a_row(name):
    info = model_info(name)
    assert info.paper == "vision-xformers"
    assert {"top1_percent", "top5_percent", "gpu_gb"} <= info.published.keys()
    if info.table == "Table 6":
        assert "params" not in info.published
    elif name == "levip_cifar10":
        assert info.published["params"] == 662_410
        assert "622,410" in info.note
    else:
        assert info.published["params"] == ALL[name][0]
        assert "torchsummary" in info.note


def test_every_row_is_there():
    names = [*list_models("*_cifar10"), *list_models("*_tinyimagenet")]
    assert {n for n in names if model_info(n).paper == "vision-xformers"} == set(ALL)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("hybrid_vin", "hybrid_vin_cifar10"),
        ("ccp", "ccp_cifar10"),
        ("levip", "levip_cifar10"),
        ("hybrid_rope_vil", "hybrid_rope_vil_cifar10"),
        ("pip", "pip_cifar10"),
    ],
)
def test_the_papers_own_names(alias, name):
    assert model_info(alias).name == name


def test_names_that_other_models_have_too_are_no_aliases():
    aliases = {alias for name in ALL for alias in model_info(name).aliases}
    assert not aliases & {"vit", "mixer", "levit", "cct", "cvt", "pit"}
    assert not any(model_info(f"{name}_tinyimagenet").aliases for name in TINY_IMAGENET)


class TwiceAndBare(nn.Module):
    def __init__(self):
        super().__init__()
        self.bare = nn.Parameter(torch.zeros(7))
        self.used = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.used(self.used(x)) + self.bare[:3]


def test_the_narrower_rule_counts_calls_and_no_bare_parameters():
    model = TwiceAndBare().eval()
    spec = [TensorSpec("x", (1, 3))]
    assert count_torchsummary(model, spec) == 2 * (9 + 3 + 3 + 3)
    assert count_parameters(model) == 7 + (9 + 3 + 3 + 3) + (9 + 3)
    assert next(model.parameters()).device.type == "cpu"
    assert not any(layer._forward_hooks for layer in model.modules())

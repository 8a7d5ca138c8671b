"""What is told of an export's cost, and of how long two percent take to be seen."""

import numpy as np
import torch

from benchmarks import depthwise
from benchmarks.border import FoldedInteraction
from benchmarks.export_cost import CAPTURE, DEFAULT, LEAST, OLDER, OURS, lines
from benchmarks.products import Products
from benchmarks.products import lines as product_lines
from benchmarks.two_percent import differs, differs_paired, rates
from benchmarks.two_percent import lines as two_percent_lines
from edgevit.zoo.counting import count_macs
from edgevit.zoo.models.deit import DeiT, DeiTConfig
from edgevit.zoo.models.xcit import LocalPatchInteraction
from edgevit.zoo.randomize import randomize_


def cost(seconds, mib=500.0):
    return [
        {"export_s": seconds * f, "process_s": 3 + seconds * f, "peak_mib": mib}
        for f in (1, 9, 0.9)
    ]


def export_lines(ours, older, default, capture, least):
    ways = {OURS: ours, OLDER: older, DEFAULT: default, CAPTURE: capture, LEAST: least}
    return lines({"m": {way: cost(seconds) for way, seconds in ways.items()}})


def test_each_exporter_is_a_target_of_its_own():
    table = export_lines(2.0, 1.5, 9.0, 3.0, 1.0)
    assert "| m | edgevit | 5.00 | 2.00 | 500 |" in table
    assert table[-2].startswith("* **holds**: m, CPU of the export: 1.33 of the older exporter's")
    assert table[-1] == (
        "* **holds**: m, CPU of the export: 0.22 of the default exporter's, at most 0.5 wanted; "
        "the least 0.11, torch's capture alone 0.33"
    )
    assert export_lines(2.0, 1.5, 3.0, 1.0, 1.0)[-1].startswith(
        "* **missed**: m, CPU of the export: 0.67"
    )


def test_what_the_least_already_exceeds_is_out_of_reach():
    table = export_lines(4.0, 1.0, 4.0, 1.5, 1.8)
    assert table[-2].startswith("* **out of reach**: m, CPU of the export: 4.00 of the older")
    assert table[-2].endswith("the least 1.80, torch's capture alone 1.50")
    assert table[-1].startswith("* **missed**: m, CPU of the export: 1.00 of the default")


def test_what_holds_is_not_out_of_reach_whatever_the_least_took():
    assert export_lines(1.0, 1.0, 9.0, 1.5, 1.8)[-2].startswith("* **holds**")


def rounds(level, noise, count=40, seed=0):
    return level * (1 + noise * np.random.default_rng(seed).standard_normal(count))


def test_two_percent_are_seen_in_quiet_rounds_and_not_in_loud_ones():
    less, more = rounds(10, 0.002), rounds(10.2, 0.002, seed=1)
    assert differs(less, more)
    assert not differs(less[:3], more[:3])  # too few for any test
    assert not differs(rounds(10, 0.2, count=6), rounds(10.2, 0.2, count=6, seed=2))
    assert not differs(less, less * 1.005)  # significant, and too little to be called one


def test_what_falls_on_both_files_of_a_round_is_no_noise_to_a_paired_rule():
    less, more = rounds(10, 0.2), 1.02 * rounds(10, 0.2) * rounds(1, 0.001, seed=1)
    assert differs_paired(less, more)
    assert not differs(less, more)
    assert not differs_paired(less[:5], more[:5])  # five of five are no proof
    assert not differs_paired(less, less * 1.005)
    assert not differs_paired(less, rounds(10, 0.2, seed=2))


def test_the_table_of_two_percent_has_both_rules():
    less, again, more = rounds(10, 0.2), rounds(10, 0.2), 1.02 * rounds(10, 0.2)
    text = two_percent_lines([[less, again, more]])
    assert text[0].startswith(f"{np.median(less):.3f} ms; the same work again 1.0000, with 51")
    assert "| 40 | 4.0 | 0% | 0% | 100% | 0% |" in text
    assert not any(line.startswith("| 60 ") for line in text)


def test_a_long_bench_is_as_many_short_ones_as_fit():
    bench = [rounds(10, 0.002), rounds(10, 0.002, seed=3), rounds(10.2, 0.002, seed=1)]
    assert rates([bench], 10) == (1.0, 0.0)
    assert rates([[bench[0], bench[2], bench[0]]], 10) == (0.0, 1.0)
    assert rates([bench], 41) is None


def test_the_table_of_depthwise_convolutions_has_a_ratio_for_each_runtime():
    whole, parts, same = ([[ms / 1e3] * 3] * 2 for ms in (8, 2, 9))
    names = [name for pair in depthwise.WAYS.values() for name in pair]
    times = dict(zip(names, [whole, parts, same, same], strict=True))
    row = depthwise.lines({"SOFT-T, first stage": times})[-1]
    assert row == (
        "| SOFT-T, first stage | 64, 56 x 56, 9 x 9 | 8.000 | 4.00 ± 0.00 | 9.000 | 1.00 ± 0.00 |"
    )


def test_a_batchnorm_is_folded_with_its_border():
    whole = randomize_(LocalPatchInteraction(8, (4, 5))).eval()
    layer_scale, x = torch.rand(8), torch.randn(2, 20, 8)
    with torch.no_grad():
        want = layer_scale * whole(x)
        folded = FoldedInteraction(whole, layer_scale)
        assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules())
        assert torch.allclose(folded(x), want, rtol=1e-5, atol=1e-6)
        without_border = folded(x) - folded.border + folded.border.mean(1, keepdim=True)
        assert not torch.allclose(without_border, want, rtol=1e-2, atol=1e-2)


def test_products_alone_are_all_of_a_models_products():
    whole = DeiT(DeiTConfig(image_size=64, width=64, depth=2, heads=4, num_classes=10)).eval()
    image, alone = torch.randn(1, 3, 64, 64), Products(whole).eval()
    assert count_macs(alone, (image,)) == count_macs(whole, (image,))
    with torch.no_grad():
        logits = alone(image)
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()
    assert 1e-3 < logits.abs().max() < 1e3  # no denormal numbers, which take longer


def test_a_gain_beyond_what_products_leave_is_out_of_reach():
    def told(own, alone):
        samples = [[[seconds, seconds]] * 3 for seconds in (1.0, 1.0, 1 / own, 1 / alone)]
        *table, verdict = product_lines({"onnxruntime": samples, "executorch": samples})
        assert f"| executorch | 1000.00 | 1.000 ± 0 | {own:.3f} ± 0 | {alone:.3f} ± 0 |" in table
        return verdict

    assert told(1.1, 1.2) == (
        "* **out of reach**: deit_small in executorch: 1.100 ± 0 of its own naive; 1.35 wanted; "
        "products alone 1.200 ± 0"
    )
    assert told(1.1, 1.5).startswith("* **missed**")
    assert told(1.4, 1.5).startswith("* **holds**")

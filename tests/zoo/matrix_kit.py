"""One subject of the zoo, exported and checked as `make zoo` does it."""

from dataclasses import replace

import torch
from torch import nn

from benchmarks.zoo_cell import counts, export
from edgevit.source import model_source
from edgevit.zoo.registry import list_models, model_info

#: The cheapest variant of each family.
FAMILIES = [
    "ceit_tiny", "cvt_13+sima", "deepvit_tiny", "deit_tiny", "deit_tiny+la", "efficientformerv2_l",
    "efficientvit_m0", "elevit_noff", "hvt_small_4", "lavit_t", "pvt_tiny", "soft_tiny",
    "swiftformer_l3", "swin_tiny", "ccn_cifar10", "cvp_cifar10", "levil_cifar10", "pin_cifar10",
    "hybrid_rope_vil_cifar10", "fnet_cifar10", "xcit_tiny_20_p16+sima",
]  # fmt: skip
#: How many layers in a row may be alike in a model made shallow: one, and one behind it.
MOST_ALIKE = 2
#: Where something else has the size of their number, or each is very many operators.
DEPTHS = {"ceit_tiny": {"depth": 2}, "soft_tiny": {"depths": (1, 1, 1, 1)}}


def missing_families():
    """Families of the zoo of which no variant is among these."""
    everywhere = {model_info(name).family for name in list_models()}
    return everywhere - {model_info(name).family for name in FAMILIES}


def check(subject, formats):
    """Every count and every file of a subject is right; returns its source."""
    source = check_counts(subject)
    check_files(source, formats)
    return source


def check_counts(subject):
    """What it counts is what is registered; returns its source."""
    source = subject.source()
    assert "off" not in counts(subject, source)
    return source


def check_shallow(name, formats):
    """Every file of a model without its many layers that are alike is right."""
    check_files(shallow(name), formats)


def check_files(source, formats):
    for name, cell in export(source, formats):
        assert cell["status"] == ("reference" if name == "coreml" else "verified"), cell["reason"]
        # Whatever BatchNorm is left has a name in the source model.
        layers = dict(source.module.named_modules())
        assert all(kept in layers for kept in cell["batchnorms_kept"])


def shallow(name, image_size=None):
    """A model of the zoo with every kind of layer that it has, but never many alike in a row.

    What a converter takes goes by the number of operators, what it gets wrong by their kinds.
    """
    source = model_source(name, image_size=image_size, options=DEPTHS.get(name))
    images = torch.zeros(source.inputs[0].shape)
    lists = [m for m in source.module.modules() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    removed = [(layers, _remove_repeats(layers)) for layers in lists]
    if not _runs(source.module, images):  # somebody counts on the number of some
        for layers, before in removed:
            layers._modules = before
        for layers in lists:
            before = _remove_repeats(layers)
            if len(before) > len(layers) and not _runs(source.module, images):
                layers._modules = before
    return replace(source, identity={**source.identity, "layers_alike": MOST_ALIKE})


def _remove_repeats(layers):
    """What was in it before."""
    before, kept, last, alike = layers._modules, [], None, 0
    for layer in layers:
        kind = _kind(layer)
        alike = alike + 1 if kind == last else 1
        last = kind
        if alike <= MOST_ALIKE:
            kept.append(layer)
    layers._modules = {str(number): layer for number, layer in enumerate(kept)}
    return before


def _kind(layer):
    shapes = [(name, tuple(tensor.shape)) for name, tensor in layer.state_dict().items()]
    return shapes, [(type(m), getattr(m, "stride", None)) for m in layer.modules()]


def _runs(module, images):
    try:
        with torch.inference_mode():
            module(images)
    except Exception:
        return False
    return True

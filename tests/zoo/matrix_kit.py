"""One subject of the zoo, exported and checked as `make zoo` does it."""

from benchmarks.zoo_cell import counts, export
from edgevit.zoo.registry import list_models, model_info

#: The cheapest variant of each family.
FAMILIES = [
    "ceit_tiny", "cvt_13+sima", "deepvit_tiny", "deit_tiny", "deit_tiny+la", "efficientformerv2_l",
    "efficientvit_m0", "elevit_noff", "hvt_small_4", "lavit_t", "pvt_tiny", "soft_tiny",
    "swiftformer_l3", "swin_tiny", "ccn_cifar10", "cvp_cifar10", "levil_cifar10", "pin_cifar10",
    "hybrid_rope_vil_cifar10", "fnet_cifar10", "xcit_tiny_20_p16+sima",
]  # fmt: skip


def missing_families():
    """Families of the zoo of which no variant is among these."""
    everywhere = {model_info(name).family for name in list_models()}
    return everywhere - {model_info(name).family for name in FAMILIES}


def check(subject, formats):
    """Every count and every file of a subject is right; returns its source."""
    source = subject.source()
    assert "off" not in counts(subject, source)
    for name, cell in export(source, formats):
        assert cell["status"] == ("reference" if name == "coreml" else "verified"), cell["reason"]
        # Whatever BatchNorm is left has a name in the source model.
        layers = dict(source.module.named_modules())
        assert all(kept in layers for kept in cell["batchnorms_kept"])
    return source

"""One subject of the zoo, exported and checked as `make zoo` does it."""

from benchmarks.zoo_cell import counts, export


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

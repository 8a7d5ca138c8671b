"""A model of each family, made shallow, and every block, in the other formats.

`make zoo` runs all models as they are.
"""

import pytest
from matrix_kit import FAMILIES, check, check_shallow, missing_families

from benchmarks.zoo_cell import Subject
from edgevit.zoo.registry import list_blocks

pytestmark = pytest.mark.slow


def test_each_family_is_there():
    assert not missing_families()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_in_core_ml_and_tflite(name):
    check_shallow(name, ["coreml", "tflite"])


@pytest.mark.parametrize("name", list_blocks())
def test_a_block_in_every_format(name):
    check(Subject("block", name), ["onnx", "coreml", "tflite"])

"""Every attention block as a Core ML package."""

from __future__ import annotations

import pytest
from mil_kit import Saved, save

from edgevit.capture import capture
from edgevit.errors import OptionError
from edgevit.zoo import list_blocks
from edgevit.zoo.factory import block_inputs, create_block
from edgevit.zoo.randomize import randomize_

SIZE = {"tokens": 16, "head_dim": 8, "heads": 4}


def block(name: str, folder, *, projections: bool, **options) -> Saved:
    module = randomize_(create_block(name, **SIZE, projections=projections))
    program = capture(module, block_inputs(name, **SIZE, projections=projections))
    return save(program, folder, **options)


@pytest.mark.parametrize("name", list_blocks())
def test_a_block_agrees_in_fp32(name, tmp_path):
    assert block(name, tmp_path, projections=True, precision="fp32").error() < 5e-6


@pytest.mark.parametrize("name", list_blocks())
def test_the_core_of_a_block_agrees_in_fp16(name, tmp_path):
    try:
        saved = block(name, tmp_path, projections=False)
    except OptionError:
        saved = block(name, tmp_path, projections=True)
    assert {result.status for result in saved.verify()} == {"reference"}

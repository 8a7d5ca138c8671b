import pytest

from edgevit.profiling.layers import block_of, group_of, stage_of


@pytest.mark.parametrize(
    ("layer", "block", "stage"),
    [
        ("stem.0.2", "stem", "stem"),
        ("head", "head", "head"),
        ("", "(model)", "(model)"),
        ("blocks.11.attn.qkv", "blocks.11", "blocks"),
        ("layers.0.mixer.qkv", "layers.0", "layers"),
        ("layers.1.blocks.3.attn", "layers.1.blocks.3", "layers.1"),
        ("stages.0.blocks.1.mixer.inner", "stages.0.blocks.1", "stages.0"),
        ("stages.1.4.0.depthwise", "stages.1.4", "stages.1"),
        ("stages.1.downsample.1.2", "stages.1.downsample", "stages.1"),
        ("stages.2", "stages.2", "stages.2"),
        ("patch_embed.proj.0.0", "patch_embed", "patch_embed"),
    ],
)
def test_blocks_and_stages(layer: str, block: str, stage: str) -> None:
    assert block_of(layer) == block
    assert stage_of(layer) == stage


def test_what_nobody_knows_is_a_group_of_its_own() -> None:
    assert group_of(None, "block") == group_of(None, "stage") == "(unknown)"
    assert group_of("", "module") == "(model)"

"""The models and attention blocks. Importing this needs no torch; making a model does."""

from edgevit.zoo.registry import (
    BlockInfo,
    ModelInfo,
    block_info,
    list_blocks,
    list_models,
    model_info,
    register_block,
    register_model,
)

__all__ = [
    "BlockInfo",
    "ModelInfo",
    "block_info",
    "list_blocks",
    "list_models",
    "model_info",
    "register_block",
    "register_model",
]

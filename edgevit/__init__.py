"""edgevit: efficient vision transformers from PyTorch to a measured deployment on an edge device.

The public API is imported on first use, so that ``import edgevit`` costs nothing:

    model = edgevit.create_model("elevit")
    bundle = edgevit.export("elevit", formats=["onnx", "tflite"])
    results = edgevit.bench([bundle.path], device="local")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevit.bundle import Bundle
    from edgevit.source import BlockSpec
    from edgevit.verbs.bench import bench
    from edgevit.verbs.export import export
    from edgevit.verbs.profile import profile
    from edgevit.zoo import list_blocks, list_models, model_info, register_block, register_model
    from edgevit.zoo.factory import create_block, create_model

__version__: str

__all__ = [
    "BlockSpec",
    "Bundle",
    "__version__",
    "bench",
    "create_block",
    "create_model",
    "export",
    "list_blocks",
    "list_models",
    "model_info",
    "profile",
    "register_block",
    "register_model",
]

_HOME = {
    "BlockSpec": "edgevit.source",
    "Bundle": "edgevit.bundle",
    "bench": "edgevit.verbs.bench",
    "create_block": "edgevit.zoo.factory",
    "create_model": "edgevit.zoo.factory",
    "export": "edgevit.verbs.export",
    "list_blocks": "edgevit.zoo",
    "list_models": "edgevit.zoo",
    "model_info": "edgevit.zoo",
    "profile": "edgevit.verbs.profile",
    "register_block": "edgevit.zoo",
    "register_model": "edgevit.zoo",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("edgevit")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgevit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Write ``index.json``: what our models and blocks are, for listing them without torch.

python -m edgevit.zoo.index            write it
python -m edgevit.zoo.index --check    exit 1 if it is not what would be written
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import torch

from edgevit.registry import entry_points
from edgevit.tensorspec import TensorSpec
from edgevit.zoo import registry
from edgevit.zoo.counting import count_macs, count_parameters, count_torchsummary
from edgevit.zoo.layers import as_pair

__all__ = ["build_index"]


def build_index() -> dict[str, Any]:
    """The index as it should be: every model and block of our own modules, models with counts."""
    for group in ("edgevit.models", "edgevit.blocks"):
        for module in entry_points(group).values():
            if module.startswith("edgevit."):
                importlib.import_module(module)
    models = {n: _model(i) for n, (i, _) in sorted(registry._models.items()) if _ours(i.module)}
    blocks = {n: _block(i) for n, (i, _) in sorted(registry._blocks.items()) if _ours(i.module)}
    return {"models": models, "blocks": blocks}


def _ours(module: str) -> bool:
    return module.startswith("edgevit.")


def _model(info: registry.ModelInfo) -> dict[str, Any]:
    with torch.device("meta"):
        model = registry._models[info.name][1](
            num_classes=info.num_classes, image_size=info.image_size, in_chans=3
        ).eval()
    image = TensorSpec("image", (1, 3, *as_pair(info.image_size)), "image")
    return {
        "module": info.module,
        "function": info.function,
        "summary": info.summary,
        "aliases": list(info.aliases),
        "paper": info.paper,
        "table": info.table,
        "image_size": info.image_size,
        "num_classes": info.num_classes,
        "published": dict(info.published),
        "note": info.note,
        "params": count_parameters(model),
        "macs": count_macs(model, [image]),
        "params_torchsummary": (
            count_torchsummary(model, [image]) if "params" in info.published else None
        ),
    }


def _block(info: registry.BlockInfo) -> dict[str, Any]:
    return {
        "module": info.module,
        "function": info.function,
        "layout": info.layout,
        "summary": info.summary,
        "paper": info.paper,
    }


def main() -> int:
    """Write the index, or with ``--check`` compare it."""
    text = json.dumps(build_index(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        current = registry.INDEX.read_text(encoding="utf-8") if registry.INDEX.is_file() else ""
        if current != text:
            print(f"{registry.INDEX.name} is stale: run `make index`", file=sys.stderr)
        return int(current != text)
    registry.INDEX.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

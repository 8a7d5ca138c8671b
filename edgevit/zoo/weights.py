"""Weights from a file, or nothing at all: a model is never loaded half.

``.safetensors`` is read as it is; ``.pth`` and ``.pt`` only with torch's ``weights_only=True``,
which refuses a pickle that carries code.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import WeightsError

__all__ = ["hash_state", "load_weights", "read_state"]

#: Keys under which training scripts store the weights among other things.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
SHOWN = 8
#: What weights are read from.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name.

    Raises:
        WeightsError: the file is missing, truncated, of another kind, or carries code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"no weights file at {path}", hint="give a .safetensors, .pth or .pt file"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in SUFFIXES:
        return _read_pickle(path)
    raise WeightsError(
        f"{path.name}: weights are read from .safetensors, .pth, .pt and .bin, "
        f"not from {path.suffix or 'a file without suffix'}"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name} is damaged or no safetensors file: {error}") from error
    return tensors


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name} holds more than tensors and is not loaded: "
            f"unpickling it could run code ({_first_line(error)})",
            hint="save the state dict alone, better as .safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path.name} is damaged or no torch file: {_first_line(error)}"
        ) from error
    return _unwrap(content, path.name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _unwrap(content: Any, name: str) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{name} holds no state dict, but {type(content).__name__}")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if all(key.startswith("module.") for key in tensors):  # saved from DataParallel
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "weights") -> None:
    """Load a state dict that must fit exactly.

    Args:
        model: changed in place, only if everything fits.
        state: tensors by the model's own names.
        source: what to call the state in errors.

    Raises:
        WeightsError: keys or shapes differ; they are listed and the model is unchanged.
    """
    own = model.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    wrong = [
        f"{key}: {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if missing or unexpected or wrong:
        raise WeightsError(
            "\n".join(
                [
                    f"{source} does not fit the model; nothing was loaded",
                    *_listing("missing", missing),
                    *_listing("unexpected", unexpected),
                    *_listing("of another shape", wrong),
                ]
            ),
            hint="is it for another model, another class count or another image size?",
        )
    model.load_state_dict(dict(state), strict=False)


def _listing(what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    shown = [f"    {item}" for item in items[:SHOWN]]
    more = [f"    ... and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return [f"  {len(items)} {what}:", *shown, *more]


def hash_state(model: nn.Module) -> str:
    """sha256 over names, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

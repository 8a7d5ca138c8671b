"""Weights by name: a file, or a repository on the Hugging Face hub.

``timm/efficientvit_m5.r224_in1k`` and ``hf-hub:owner/name`` are repositories, the latter with
``@revision`` behind it if need be; everything else, and whatever exists here under that name, is a
file. A repository's safetensors are preferred to its pickles. Downloads land in the hub's own
cache, from which they are read again without a network.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import EdgevitError, MissingExtraError, UnavailableError, WeightsError
from edgevit.zoo.weights import SUFFIXES

__all__ = ["WeightsFile", "locate_weights"]

PREFIX = "hf-hub:"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
#: What a repository's weights may be called, in the order of preference.
FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine, and where it is from.

    Args:
        path: the file.
        repository: on the hub, ``owner/name``; None for a file of the user's.
        revision: the repository's commit.
    """

    path: Path
    repository: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """What errors call it."""
        return self.repository or self.path.name

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        if self.repository is None:
            return {"kind": "file", "file": self.path.name}
        return {
            "kind": "hub",
            "repository": self.repository,
            "revision": self.revision,
            "file": self.path.name,
        }


def locate_weights(weights: str | Path) -> WeightsFile:
    """The weights file of that name, downloaded from the hub if it is a repository there.

    Raises:
        WeightsError: there is no such repository or revision, it is closed, or has no weights.
        UnavailableError: the hub cannot be reached, and the cache has nothing of it.
        MissingExtraError: huggingface_hub is not installed.
    """
    name = str(weights)
    asked = name.startswith(PREFIX)
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    likely = isinstance(weights, str) and REPOSITORY.fullmatch(repository)
    if not asked and (not likely or Path(name).exists() or Path(name).suffix in SUFFIXES):
        return WeightsFile(Path(weights))
    if not REPOSITORY.fullmatch(repository):
        raise WeightsError(
            f"{name}: expected {PREFIX}owner/name or {PREFIX}owner/name@revision",
            hint="a file is given by its path alone",
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtraError("weights from the Hugging Face hub", ["huggingface_hub"], "hub")
    path = _download(repository, revision or None)
    # The cache is laid out as .../snapshots/<commit>/<file>.
    return WeightsFile(path, repository, path.parent.name)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub.errors import LocalEntryNotFoundError

    missing: list[Exception] = []
    for file in FILES:
        found = _file(repository, file, revision)
        if isinstance(found, Path):
            return found
        missing.append(found)
    for error in missing:
        if isinstance(error, LocalEntryNotFoundError):
            raise _unreachable(repository, error) from error
    raise WeightsError(
        f"{repository} on the hub has none of {', '.join(FILES)}",
        hint="download the file that holds its weights, and give its path",
    )


def _file(repository: str, file: str, revision: str | None) -> Path | Exception:
    """One file of a repository, or why there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path: str = hf_hub_download(repository, file, revision=revision)
    except EntryNotFoundError as error:  # also if nothing answers and the cache has nothing
        missing: Exception = error
        return missing
    except Exception as error:
        raise _explained(repository, revision, error) from error
    return Path(path)


def _explained(repository: str, revision: str | None, error: Exception) -> EdgevitError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{repository} asks for its terms to be accepted",
            hint=f"accept them at the repository's page, then `hf auth login`, or {_by_hand()}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"there is no public repository {repository} on the hub",
            hint=f"look at its spelling, which is owner/name; for a private one `hf auth login`, "
            f"or {_by_hand()}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{repository} on the hub has no revision {revision}")
    if isinstance(error, errors.HFValidationError):
        return WeightsError(f"{repository} is no name of a repository: {error}")
    if isinstance(error, OSError):  # every error of the network is one
        return _unreachable(repository, error)
    raise error


def _unreachable(repository: str, error: Exception) -> UnavailableError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UnavailableError(
        f"{repository} could not be fetched from the hub, and is not in its cache: {lines[0]}",
        hint=f"where there is a network: `hf download {repository} {FILES[0]}`; then {_by_hand()}",
    )


def _by_hand() -> str:
    return "give the downloaded file's path as the weights"

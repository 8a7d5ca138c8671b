"""From a picture to the tensor that a model takes, said in full so that it travels with the file.

Different preprocessing is a common hidden cause of "the exported model gives other numbers"; the
manifest of a bundle holds one of these.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import OptionError

__all__ = ["PHOTOGRAPH", "Preprocessing", "crop_image", "load_image"]

#: A photograph that ships with edgevit (NASA, public domain), so that a real image is always at
#: hand.
PHOTOGRAPH = Path(__file__).parent / "data" / "photograph.jpg"

RESAMPLING = ("bilinear", "bicubic", "lanczos", "nearest")


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input.

    The shorter side is resized to the input's size divided by ``crop``, the centre is cut out,
    values are scaled to ``value_range``, ``mean`` is taken off and the rest divided by ``std``, per
    channel.

    Args:
        mean: per channel, in the units of ``value_range``.
        std: per channel, likewise.
        value_range: what pixel values 0 and 255 become before mean and std.
        crop: share of the resized shorter side that the centre crop keeps.
        resample: ``"bilinear"``, ``"bicubic"``, ``"lanczos"`` or ``"nearest"``.
        color: ``"RGB"`` or ``"L"``.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    value_range: tuple[float, float] = (0.0, 1.0)
    crop: float = 0.875
    resample: str = "bicubic"
    color: str = "RGB"

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLING:
            raise OptionError("resample", expected=" or ".join(RESAMPLING), got=self.resample)
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise OptionError("std", expected="a positive value per channel", got=self.std)
        if not 0 < self.crop <= 1:
            raise OptionError("crop", expected="a share above 0 and up to 1", got=self.crop)

    @classmethod
    def for_channels(cls, channels: int) -> Preprocessing:
        """ImageNet's values for three channels, plain mean and deviation for any other number."""
        if channels == 3:
            return cls()
        color = "L" if channels == 1 else "RGB"
        return cls(mean=(0.5,) * channels, std=(0.25,) * channels, color=color)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        """The reverse of :meth:`to_json`."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)


def load_image(
    path: str | Path, size: tuple[int, int], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """A picture as a model's input.

    Args:
        path: a file that Pillow reads.
        size: height and width of the input in pixels.
        preprocessing: how to get there.

    Returns:
        Array (1, C, H, W); C follows ``preprocessing.mean``.

    Raises:
        OptionError: there is no such file, or it is no picture.
    """
    pixels = np.asarray(crop_image(path, size, preprocessing), dtype=np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    low, high = preprocessing.value_range
    scaled = pixels / 255.0 * (high - low) + low
    channels = len(preprocessing.mean)
    if scaled.shape[-1] != channels:  # more channels than a picture has: repeat them in turn
        scaled = scaled[..., np.arange(channels) % scaled.shape[-1]]
    mean = np.asarray(preprocessing.mean, dtype=np.float32)
    normalized = (scaled - mean) / np.asarray(preprocessing.std, dtype=np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None], dtype=np.float32)


def crop_image(path: str | Path, size: tuple[int, int], preprocessing: Preprocessing) -> Any:
    """The part of a picture that a model sees, as a Pillow image of that height and width.

    Raises:
        OptionError: there is no such file, or it is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            picture = file.convert(preprocessing.color)
    except (FileNotFoundError, IsADirectoryError, UnidentifiedImageError, OSError) as error:
        raise OptionError("image", expected="a picture that can be read", got=str(path)) from error
    return _resize_and_crop(picture, size, preprocessing)


def _resize_and_crop(picture: Any, size: tuple[int, int], preprocessing: Preprocessing) -> Any:
    from PIL import Image

    height, width = size
    factor = max(height / picture.height, width / picture.width) / preprocessing.crop
    resized = picture.resize(
        (
            max(width, round(picture.width * factor)),
            max(height, round(picture.height * factor)),
        ),
        getattr(Image.Resampling, preprocessing.resample.upper()),
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))

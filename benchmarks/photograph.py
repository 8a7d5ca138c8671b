"""Write one of scikit-image's photographs as a file, for the demo: a real picture to run on."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    from PIL import Image
    from skimage import data

    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.chelsea()).save(target)


if __name__ == "__main__":
    main()

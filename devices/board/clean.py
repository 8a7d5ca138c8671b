"""Remove what edgevit keeps on the board. Arguments: its folder there, more folders in it to go.

Printed: the bytes that were freed. Files in use stay readable to those that have them open.
"""

import json
import os
import shutil
import sys


def main() -> None:
    """Remove it."""
    freed = 0
    for name in ["store", "agent", "tmp", "wheels", *sys.argv[2:]]:
        folder = os.path.join(sys.argv[1], name)
        seen = set()
        for place, _, files in os.walk(folder):
            for file in files:
                status = os.lstat(os.path.join(place, file))
                if status.st_ino not in seen:
                    freed += status.st_size
                    seen.add(status.st_ino)
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(freed))


main()

"""Wheels in a folder: which are there whole, or make those whole that were just sent.

Arguments: the folder, then "look" or "keep". stdin: JSON, sha256 by file name. Printed: names that
are there and right. "keep" renames NAME.part that is right, and removes what is wrong or unknown.
"""

import hashlib
import json
import os
import sys


def digest(path: str) -> str:
    """The file's sha256; empty if there is none."""
    total = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                total.update(block)
    except OSError:
        return ""
    return total.hexdigest()


def main() -> None:
    """Look, or keep."""
    folder, mode = sys.argv[1], sys.argv[2]
    wanted = json.loads(sys.stdin.read())
    if mode == "keep":
        for name, sha256 in wanted.items():
            part = os.path.join(folder, name + ".part")
            if digest(part) == sha256:
                os.replace(part, os.path.join(folder, name))
        for name in os.listdir(folder):
            if name not in wanted:
                os.unlink(os.path.join(folder, name))
    right = [name for name in wanted if digest(os.path.join(folder, name)) == wanted[name]]
    print(json.dumps(right))


main()

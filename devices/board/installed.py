"""Versions of what is installed for the Python that runs this, by the distribution's name.

Arguments: the file that setup leaves when it is through; its content is told too, null without it.
"""

import glob
import json
import os
import re
import sys


def versions() -> "dict[str, str]":
    """Read from the names of the metadata folders: importlib.metadata came with Python 3.8."""
    found = {}
    for place in reversed(sys.path):
        for folder in glob.glob(os.path.join(glob.escape(place or "."), "*.dist-info")):
            name, _, version = os.path.basename(folder)[: -len(".dist-info")].partition("-")
            # RECORD is written last: without it, an installation broke off.
            if os.path.exists(os.path.join(folder, "RECORD")):
                found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def mark() -> "object":
    """What setup left."""
    try:
        with open(sys.argv[1]) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


told = {"python": list(sys.version_info[:3]), "versions": versions(), "mark": mark()}
print(json.dumps(told))

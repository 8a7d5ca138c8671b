"""A stand-in for Xcode's xcodebuild: it makes an empty app. STANDIN_NO_TEAM lets it fail as it does
without a team to sign for."""

import os
import sys
from pathlib import Path

with (Path(os.environ["STANDIN_PHONE"]) / "log").open("a") as log:
    log.write("xcodebuild " + " ".join(sys.argv[2:]) + "\n")
if os.environ.get("STANDIN_NO_TEAM"):
    print('error: Signing for "modelrunner" requires a development team.')
    sys.exit(65)
(symroot,) = [word.partition("=")[2] for word in sys.argv if word.startswith("SYMROOT=")]
(Path(symroot) / "Release-iphoneos" / "modelrunner.app").mkdir(parents=True)

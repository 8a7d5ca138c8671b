"""A stand-in for Apple's devicectl and xcrun: an iPhone that is a folder (STANDIN_PHONE).

It answers what coremltools and the agent call, with results in the JSON of devicectl. The folder's
``devices.json`` is what is attached; STANDIN_LOCKED lets the launch of an app fail as on a locked
phone.
"""

import json
import os
import shutil
import sys
from pathlib import Path

PHONE = Path(os.environ["STANDIN_PHONE"])


def main(words):
    if words[:1] == ["--find"]:
        print(Path(sys.argv[1]).with_name(words[1]))
        return
    if words[:1] == ["devicectl"]:
        words = words[1:]
    with (PHONE / "log").open("a") as log:
        log.write(" ".join(words) + "\n")
    options = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("-")}
    for word in words:
        if word.startswith("--") and "=" in word:
            options.update([word.split("=", 1)])
    result = answer(words, options)
    if "-j" in options:
        Path(options["-j"]).write_text(json.dumps({"info": {}, "result": result}))


def answer(words, options):
    container = PHONE / "container"
    if words[:2] == ["list", "devices"]:
        return {"devices": json.loads((PHONE / "devices.json").read_text())}
    if words[:3] == ["device", "info", "details"]:
        return wake(options["-d"])
    if words[:3] == ["device", "install", "app"]:
        return {"installedApplications": [{"bundleID": "com.coremltools.modelrunnerd",
                                           "databaseUUID": "0"}]}  # fmt: skip
    if words[:3] == ["device", "process", "launch"]:
        if os.environ.get("STANDIN_LOCKED"):
            sys.exit(fail("the device was not, or could not be, unlocked. (Locked)"))
        shutil.rmtree(container, ignore_errors=True)
        runner = Path(__file__).resolve().parent.parent / "runner.py"
        os.execv(sys.executable, [sys.executable, str(runner), str(container)])
    if words[:3] == ["device", "copy", "to"]:
        source, target = Path(options["--source"]), container / options["--destination"]
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(source, target)
        return {"source": str(source), "destination": str(target)}
    if words[:3] == ["device", "copy", "from"]:
        source, target = container / options["--source"], Path(options["--destination"])
        if not source.exists():
            sys.exit(fail("ERROR: The file does not exist on the device (NSPOSIXErrorDomain 2)"))
        copy(source, target)
        return {"source": str(source), "destination": str(target)}
    return sys.exit(fail(f"unknown: {words}"))


def wake(identifier):
    devices = json.loads((PHONE / "devices.json").read_text())
    for device in devices:
        if device["identifier"] == identifier and device.get("asleep"):
            device["connectionProperties"]["tunnelState"] = "connected"
    (PHONE / "devices.json").write_text(json.dumps(devices))
    return {}


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        partial = target.with_name(target.name + ".partial")
        shutil.copyfile(source, partial)
        partial.rename(target)


def fail(text):
    print(text, file=sys.stderr)
    return 1


main(sys.argv[2:])

"""A Mac that is none: coremltools' real Python over the stand-ins of ``standins/mac``."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from devices_kit import make_subject
from numpy.typing import NDArray

from devices.base import Subject

MAC = Path(__file__).with_name("standins") / "mac"

IPHONE: dict[str, Any] = {
    "identifier": "8F2B1C3D-0000-4000-8000-00000000A13A",
    "deviceProperties": {
        "name": "Test iPhone",
        "osVersionNumber": "17.7.2",
        "osBuildUpdate": "21H221",
        "developerModeStatus": "enabled",
    },
    "hardwareProperties": {"deviceType": "iPhone", "udid": "00008030-00000000000000A1"},
    "connectionProperties": {"tunnelState": "connected"},
}


def mac_environment(folder: Path) -> dict[str, str]:
    """Variables of the Mac; its iPhone is a folder, ``STANDIN_PHONE``."""
    commands, phone = folder / "mac-bin", folder / "phone"
    commands.mkdir()
    phone.mkdir()
    for name, script in (("xcrun", "devicectl"), ("devicectl",) * 2, ("xcodebuild",) * 2):
        program = commands / name
        source = MAC / "bin" / f"{script}.py"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{source}" "$0" "$@"\n')
        program.chmod(0o755)
    attach(phone, [IPHONE])
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(MAC),
        "STANDIN_PHONE": str(phone),
        "XDG_CACHE_HOME": str(folder / "mac-cache"),
    }


def attach(phone: Path, devices: list[dict[str, Any]]) -> None:
    """Say which devices are attached."""
    (phone / "devices.json").write_text(json.dumps(devices))


def iphone(**changes: Any) -> dict[str, Any]:
    """The iPhone with other properties: ``state``, ``developer_mode``, ``identifier``, ..."""
    device: dict[str, Any] = json.loads(json.dumps(IPHONE))
    if "state" in changes:
        device["connectionProperties"]["tunnelState"] = changes.pop("state")
    if "developer_mode" in changes:
        device["deviceProperties"]["developerModeStatus"] = changes.pop("developer_mode")
    return device | changes


def commands_of(phone: Path) -> list[str]:
    """What the phone's tools were called with."""
    log = phone / "log"
    return log.read_text().splitlines() if log.exists() else []


def package_subject(folder: Path) -> tuple[Subject, dict[str, NDArray[np.float32]]]:
    """A small Core ML package, fp32, with two inputs, two outputs and golden tensors."""
    import torch
    from torch import Tensor, nn

    from edgevit.capture import capture
    from edgevit.tensorspec import TensorSpec
    from exporters.mil.convert import convert, save

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            maps = torch.relu(self.conv(image)) * scale
            return maps.reshape(1, -1), maps.mean((2, 3))

    torch.manual_seed(0)
    module = Small().eval()
    specs = [TensorSpec("image", (1, 3, 6, 6), "image"), TensorSpec("scale", (1, 1, 1, 1))]
    program = capture(module, specs)
    path = folder / "small.mlpackage"
    save(convert(program, target="ios16", half=False), path)
    random = np.random.default_rng(0)
    image = random.standard_normal((3, 1, 3, 6, 6)).astype(np.float32)
    scale = random.uniform(0.5, 2, (3, 1, 1, 1, 1)).astype(np.float32)
    with torch.no_grad():
        rows = [
            module(torch.from_numpy(i), torch.from_numpy(s))
            for i, s in zip(image, scale, strict=True)
        ]
    names = [spec.name for spec in program.outputs]
    outputs = {n: np.stack([row[i].numpy() for row in rows]) for i, n in enumerate(names)}
    assert all(np.ptp(array, axis=0).max() > 0.1 for array in outputs.values())
    inputs = {"image": image, "scale": scale}
    subject = make_subject("small", path, inputs, outputs, backend="coreml")
    return subject, inputs | outputs


def with_options(subject: Subject, name: str, backend: str = "coreml", **options: Any) -> Subject:
    """The same file once more, under another name."""
    return replace(subject, id=name, backend=backend, options=options)


def wrong_golden(subject: Subject, folder: Path) -> Path:
    """Golden tensors whose last output is one percent too large."""
    with np.load(subject.golden or "") as content:
        arrays = {key: content[key] for key in content.files}
    arrays[f"output.{subject.outputs[-1]}"] *= 1.01
    path = folder / "wrong.npz"
    np.savez(path, **arrays)
    return path

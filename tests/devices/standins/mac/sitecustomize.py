"""Lets the real Python of coremltools believe, on Linux, that it is on a Mac.

Put this folder on PYTHONPATH. Nothing of coremltools is replaced but what its Linux wheel lacks:
its native library (``libcoremlpython.py`` here is the stand-in), the Xcode project of its runner
app, and the version of macOS. Only the agent's backends are told that the system is Darwin.
"""

import importlib.machinery
import importlib.util
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = "coremltools.libcoremlpython"
MACOS = (15, 5)


class _Patched:
    """Loads a module and then changes what only a Mac has."""

    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.change(module)


def _version(module):
    module._macos_version = lambda: MACOS


def _project(module):
    folder = Path(os.environ["STANDIN_PHONE"]) / "modelrunner"
    (folder / "ModelRunner.xcworkspace").mkdir(parents=True, exist_ok=True)
    module._ModelRunnerAppBuilder._get_project_path = staticmethod(lambda: folder)


CHANGES = {
    "coremltools.models.utils": _version,
    "coremltools.models.ml_program.experimental.remote_device": _project,
}


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == NATIVE and not os.environ.get("STANDIN_NO_CORE_ML"):
            return importlib.util.spec_from_file_location(name, HERE / "libcoremlpython.py")
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = _Patched(spec.loader, CHANGES[name])
        return spec


def _agent_asks():
    return sys._getframe(2).f_globals.get("__name__", "").startswith("edgevit_agent.backends")


_system, _mac_ver = platform.system, platform.mac_ver
platform.system = lambda: "Darwin" if _agent_asks() else _system()
platform.mac_ver = lambda: ("15.5", ("", "", ""), "arm64") if _agent_asks() else _mac_ver()
sys.meta_path.insert(0, _Finder)

"""Core ML packages on an iPhone or iPad that is attached to this Mac.

coremltools builds a small runner app with Xcode, installs it with ``devicectl`` and exchanges files
with it: ``MLModelBenchmarker`` has the phone load the model and predict, and the app there tells
how long each took. A prediction brings its inputs there and its outputs back, which takes a second
or two and is in no sample. What the phone does not tell, such as heat or memory, is left out.
"""

import collections
import os
import shutil
import threading
import uuid
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

from .. import system
from ..clock import clock_ns
from ..errors import AgentError, describe
from ..kept import cache_folder, remove
from .base import APART, Array, Backend, import_module, version_of
from .coreml import (
    UNITS,
    Placement,
    check_unit,
    import_coremltools,
    named_outputs,
    placement,
    unit_of,
)

EXPERIMENTAL = "coremltools.models.ml_program.experimental."

#: Variables with which Xcode signs the runner app.
TEAM, PROFILE, BUNDLE = (
    "EDGEVIT_DEVELOPMENT_TEAM",
    "EDGEVIT_PROVISIONING_PROFILE",
    "EDGEVIT_BUNDLE_IDENTIFIER",
)

XCODE = "install Xcode 15 or newer and start it once; `xcrun devicectl list devices` has to work"
PULSE_SECONDS = 0.5
#: Of what ``devicectl`` says, kept for an error's message.
LINES = 20


class CoreMLPhone(Backend):
    """Predictions on a phone, timed there.

    Options: ``device`` (identifier, UDID or name of the phone; null if only one is attached) and
    ``compute_unit``, one of ``UNITS``.
    """

    name = "coreml-phone"
    region = "one prediction, timed on the phone by coremltools' runner app; no transfer is in it"
    defaults = {"device": None, "compute_unit": "all"}
    where = APART
    tells_times = True

    def import_runtime(self) -> None:
        check_unit(self.options["compute_unit"])
        self._coremltools: Any = import_coremltools()
        self._plan: Optional[Placement] = None

    def runtime(self) -> Dict[str, Any]:
        return {"name": "coremltools", "version": version_of(self._coremltools)}

    def settings(self) -> Dict[str, Any]:
        self._plan = self._plan or self._read_plan()
        return {
            "threads": None,
            "compute_unit": self.options["compute_unit"],
            "compute_units": UNITS[self.options["compute_unit"]],
            "phone": self._phone.facts(),
            **self._plan.settings(),
        }

    def prepare(self) -> None:
        self._phone = open_phone(self.options["device"], self.pulse)
        unit = unit_of(self._coremltools, self.options)
        model = self._coremltools.models.MLModel(
            self.file, skip_model_load=True, compute_units=unit
        )
        benchmarks = import_module(EXPERIMENTAL + "perf_utils")
        self._benchmarker = benchmarks.MLModelBenchmarker(model, device=self._phone.device)

    def load(self) -> Optional[int]:
        measured = self._await(self._benchmarker.benchmark_load(iterations=1))
        # It keeps the model that it loaded, for its predictions and ours.
        self._loaded = self._benchmarker._loaded_model
        return _ns(measured.samples[0])

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        self._feed = {name: inputs[place] for place, name in enumerate(self.inputs)}
        return lambda: self._await(self._loaded.predict(self._feed))

    def outputs(self, result: Any) -> List[Array]:
        return named_outputs(result, self.output_names)

    def last_ns(self) -> Optional[int]:
        told = self._loaded.last_predict_duration_in_nano_seconds
        return None if told is None else int(told)

    def measure(self, runs: Optional[int], budget_ns: float) -> List[int]:
        samples: List[int] = []
        start = clock_ns()
        while True:
            predict = self._benchmarker.benchmark_predict(inputs=self._feed, iterations=1)
            samples += [_ns(ms) for ms in self._await(predict).samples]
            if len(samples) == runs or clock_ns() - start >= budget_ns:
                return samples

    def warnings(self) -> List[Tuple[str, str]]:
        self._plan = self._plan or self._read_plan()
        return self._plan.warnings(self.options["compute_unit"])

    def close(self) -> None:
        phone = PHONES.pop(self.options["device"], None)
        if phone is not None:
            phone.close()

    def _await(self, coroutine: Any) -> Any:
        return self._phone.run(coroutine, self.pulse)

    def _read_plan(self) -> Placement:
        try:
            plan = self._await(self._loaded.retrieve_compute_plan())
            return placement(self._coremltools, plan)
        except AgentError as error:
            reason = "the phone's compute plan cannot be read: " + error.message
            return Placement({}, {}, reason)


class Phone:
    """An attached device with coremltools' runner app started on it.

    Args:
        wanted: its identifier, UDID or name; None takes the only one.
        pulse: called again and again while Xcode builds; raises to end it.

    Raises:
        AgentError: there is none, it is not ready, or the app cannot be built or started.
    """

    def __init__(self, wanted: Optional[str], pulse: Callable[[], None]) -> None:
        import asyncio

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._remote: Any = import_module(EXPERIMENTAL + "remote_device")
        self._said: Deque[bytes] = collections.deque(maxlen=LINES)
        find_tools()
        self.device: Any = self._find(wanted)
        self._scratch()
        try:
            self._start(pulse)
        except BaseException:
            self.close()
            raise

    def _start(self, pulse: Callable[[], None]) -> None:
        """Build, install and start the runner app; Xcode keeps what it built."""
        credentials = self._remote.AppSigningCredentials(
            development_team=os.environ.get(TEAM, ""),
            provisioning_profile_uuid=os.environ.get(PROFILE),
            bundle_identifier=os.environ.get(BUNDLE),
        )
        version = version_of(import_module("coremltools"))
        folder = os.path.join(cache_folder("modelrunner"), str(version))
        os.makedirs(folder, exist_ok=True)
        prepare = self.device.prepare_for_model_debugging(
            credentials=credentials, working_directory=folder
        )
        self.device = self.run(prepare, pulse)
        process = self.device.session._process
        for stream, keep in ((process.stdout, self._ignore), (process.stderr, self._said.append)):
            # What nobody reads would in the end block the app.
            threading.Thread(target=_drain, args=(stream, keep), daemon=True).start()

    def facts(self) -> Dict[str, Any]:
        """What it tells of itself."""
        return {
            "name": self.device.name,
            "type": self.device.type.value,
            "os_version": self.device.os_version,
            "os_build": self.device.os_build_number,
        }

    def run(self, coroutine: Any, pulse: Callable[[], None]) -> Any:
        """Wait for a coroutine of coremltools.

        Raises:
            AgentError: it failed, in words that say what to do.
        """
        import asyncio

        task = self._loop.create_task(coroutine)
        while not task.done():
            self._loop.run_until_complete(asyncio.wait([task], timeout=PULSE_SECONDS))
            pulse()
            if self._ended() and not task.done():
                task.cancel()
                raise explained(EOFError("the runner app on the phone ended"), self._words())
        try:
            return task.result()
        except Exception as error:
            raise explained(error, self._words() if self._ended() else "") from error

    def close(self) -> None:
        """End the app, and remove what was exchanged with it."""
        session = getattr(self.device, "session", None)
        if session is not None:
            session.stop()
            folder = str(session.working_directory)
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                if _is_uuid(name):
                    remove(os.path.join(folder, name))
        remove(self._folder)
        self._loop.close()

    def _scratch(self) -> None:
        """A folder for the temporary files that coremltools makes at each prediction and leaves."""
        import tempfile

        self._folder = os.path.join(cache_folder("phone"), "exchange-{}".format(os.getpid()))
        os.makedirs(self._folder, exist_ok=True)
        tempfile.tempdir = self._folder

    def _find(self, wanted: Optional[str]) -> Any:
        device = self._choose(wanted)
        if device.state != self._remote.DeviceState.CONNECTED:
            # Asking it anything wakes the tunnel to a phone that is merely asleep.
            command = ["xcrun", "devicectl", "device", "info", "details", "-d", device.identifier]
            system.run(command)
            device = self._choose(wanted)
        if device.state != self._remote.DeviceState.CONNECTED:
            problem = "{} is {}: plug it in, unlock it, and let it trust this Mac"
            raise AgentError("phone", problem.format(device.name, device.state.value))
        if str(device.developer_mode_state).lower() == "disabled":
            problem = "Developer Mode of {} is off: Settings, Privacy & Security, Developer Mode"
            raise AgentError("phone", problem.format(device.name))
        return device

    def _choose(self, wanted: Optional[str]) -> Any:
        kinds = (self._remote.DeviceType.IPHONE, self._remote.DeviceType.IPAD)
        try:
            found = [d for d in self._remote.Device.get_devices() if d.type in kinds]
        except Exception as error:
            raise explained(error, "") from error
        chosen = [d for d in found if wanted in (None, d.identifier, d.udid, d.name)]
        if len(chosen) == 1:
            return chosen[0]
        have = ", ".join("{} ({})".format(d.name, d.identifier) for d in found) or "none"
        if not chosen:
            asked = "no iPhone" if wanted is None else "no iPhone {}".format(wanted)
            problem = "{} is attached to this Mac; there are: {}".format(asked, have)
            raise AgentError("phone", problem)
        raise AgentError("phone", "several are attached, name one of them: {}".format(have))

    def _ended(self) -> bool:
        session = getattr(self.device, "session", None)
        return session is not None and not session.is_alive()

    def _words(self) -> str:
        """The end of what ``devicectl`` said of the app that it watches."""
        return b"".join(self._said).decode("utf-8", "replace").strip()

    @staticmethod
    def _ignore(line: bytes) -> None:
        pass


#: Phones that are open in this process, by what they were asked for as.
PHONES: Dict[Optional[str], Phone] = {}


def open_phone(wanted: Optional[str], pulse: Callable[[], None]) -> Phone:
    """The phone, whose app is built and started once for all subjects of a job."""
    if wanted not in PHONES:
        PHONES[wanted] = Phone(wanted, pulse)
    return PHONES[wanted]


def find_tools() -> None:
    """Make ``devicectl`` callable by its own name, as coremltools calls it.

    Raises:
        AgentError: there is no Xcode here.
    """
    if shutil.which("devicectl") is None:
        path = system.run(["xcrun", "--find", "devicectl"])
        if not path:
            raise AgentError("runtime-missing", "there is no devicectl on this Mac; " + XCODE)
        folder = os.path.dirname(path)
        os.environ["PATH"] = folder + os.pathsep + os.environ.get("PATH", "")
    if shutil.which("xcodebuild") is None:
        raise AgentError("runtime-missing", "there is no xcodebuild on this Mac; " + XCODE)


def explained(error: BaseException, last_words: str) -> AgentError:
    """What went wrong between this Mac and the phone, and what to do."""
    message = getattr(error, "message", None)
    told = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(error)
    text = "\n".join(part.strip() for part in (told, last_words) if part and part.strip())
    lower = text.lower()
    if isinstance(error, AgentError):
        return error
    if type(error).__qualname__.endswith("Builder.Error"):
        hint = "Xcode could not build the runner app (exit status {}); set {} to your team's id"
        return AgentError("phone", hint.format(getattr(error, "error_code", None), TEAM))
    if "command is required" in lower:
        return AgentError("runtime-missing", "{}; {}".format(text, XCODE))
    if "locked" in lower:
        return AgentError("phone", "the phone is locked: unlock it and keep it so\n" + text)
    if "developer mode" in lower:
        hint = "Developer Mode is off: Settings, Privacy & Security, Developer Mode\n"
        return AgentError("phone", hint + text)
    if "not trusted" in lower or "untrusted" in lower or "invalid code signature" in lower:
        hint = "the phone does not trust the app's developer: Settings, General, VPN & Device "
        return AgentError("phone", hint + "Management\n" + text)
    return AgentError("phone", text or describe(error))


def _drain(stream: Any, keep: Callable[[bytes], None]) -> None:
    for line in stream:
        keep(line)


def _ns(milliseconds: float) -> int:
    return int(round(milliseconds * 1e6))


def _is_uuid(name: str) -> bool:
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True

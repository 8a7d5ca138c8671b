"""Providers of ONNX Runtime: what is asked for, what is there, and what ran."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from devices_kit import QUICK, named, only, run, shadow

from devices.agent.backends import make_backend, ort
from devices.agent.errors import AgentError
from devices.base import Job, Subject
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]

#: A stand-in that says it has a GPU: its sessions are ONNX Runtime's, and run on the CPU.
FALLING_BACK = """
import importlib.machinery, importlib.util, os, sys

here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
spec = importlib.machinery.PathFinder.find_spec(
    "onnxruntime", [p for p in sys.path if os.path.abspath(p) != here])
real = importlib.util.module_from_spec(spec)
sys.modules["onnxruntime"] = real
spec.loader.exec_module(real)
HAVE = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
REACHED = os.environ["STANDIN_REACHED"].split(",")
real.get_available_providers = lambda: HAVE


class InferenceSession(real.InferenceSession):
    def __init__(self, path, sess_options, providers):
        names = [p if isinstance(p, str) else p[0] for p in providers]
        for provider in providers:
            print("ASKED", provider, file=sys.stderr)
        super().__init__(path, sess_options=sess_options, providers=["CPUExecutionProvider"])
        self.reached = [name for name in names if name in REACHED]

    def get_providers(self):
        return self.reached


real.InferenceSession = InferenceSession
"""


@pytest.fixture
def gpu(tmp_path: Path) -> dict[str, str]:
    """Variables that put the stand-in before ONNX Runtime."""
    return shadow(tmp_path, "onnxruntime", FALLING_BACK) | {
        "XDG_CACHE_HOME": str(tmp_path / "cache")
    }


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("cpu", [ort.CPU]),
        ("cuda", [ort.CUDA, ort.CPU]),
        ("tensorrt", [ort.TENSORRT, ort.CUDA, ort.CPU]),
        (["cuda"], [ort.CUDA, ort.CPU]),
        (["cuda", "tensorrt"], [ort.CUDA, ort.CPU, ort.TENSORRT]),
        ([ort.CUDA], [ort.CUDA]),
        (["XnnpackExecutionProvider", "cpu"], ["XnnpackExecutionProvider", ort.CPU]),
    ],
)
def test_short_names(wanted: Any, names: list[str]) -> None:
    assert ort.asked_providers(wanted) == names


@pytest.mark.parametrize("wanted", ["gpu", "", [], [1], None, 3])
def test_what_is_no_provider(wanted: Any) -> None:
    with pytest.raises(AgentError, match="cpu or cuda or tensorrt") as caught:
        ort.asked_providers(wanted)
    assert caught.value.kind == "protocol"


def test_what_is_not_there_is_named_with_what_is(session: LocalSession, dense: Subject) -> None:
    subject = replace(dense, options={"providers": "cuda"})
    error = only(run(session, Job("check", (subject,))), "error")
    assert error["kind"] == "runtime-missing"
    have = ", ".join(onnxruntime.get_available_providers())
    assert error["message"] == f"onnxruntime has no {ort.CUDA} here; it has {have}"


def test_half_precision_is_tensorrts(session: LocalSession, dense: Subject) -> None:
    subject = replace(dense, options={"fp16": True})
    error = only(run(session, Job("check", (subject,))), "error")
    assert (error["kind"], "alone" in error["message"]) == ("protocol", True)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_session_that_fell_back_is_not_timed(
    open_session: OpenSession, dense: Subject, gpu: dict[str, str], provider: str
) -> None:
    subject = replace(dense, options={"providers": provider})
    session = open_session(gpu | {"STANDIN_REACHED": ort.CPU})
    events = run(session, Job("time", (subject,), schedule=QUICK))
    error = only(events, "error")
    assert error["kind"] == "fallback"
    assert f"ONNX Runtime set up {ort.CPU} instead" in error["message"]
    assert not named(events, "samples")


def test_operators_that_ran_elsewhere_are_counted_and_told(
    open_session: OpenSession, dense: Subject, gpu: dict[str, str]
) -> None:
    subject = replace(dense, options={"providers": "cuda"})
    session = open_session(gpu | {"STANDIN_REACHED": f"{ort.CUDA},{ort.CPU}"})
    events = run(session, Job("time", (subject,), schedule=QUICK))
    assert not named(events, "error")
    settings = only(events, "loaded")["settings"]
    assert settings["providers"] == [ort.CUDA, ort.CPU]
    assert list(settings["ops_by_provider"]) == [ort.CPU]
    assert settings["tf32"] is False
    warning = only(events, "warning")
    assert warning["kind"] == "fallback"
    assert warning["message"].startswith(f"asked for {ort.CUDA}, of ")
    assert "copied to the GPU" in only(events, "loaded")["region"]


def test_tensorrt_is_told_its_options(
    dense: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    have = [ort.TENSORRT, ort.CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: have)
    given = []

    def session(path: str, sess_options: Any, providers: list[Any]) -> Any:
        given.append(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    spec = replace(dense, options={"providers": "tensorrt", "fp16": True}).to_json()
    with pytest.raises(RuntimeError, match="no GPU here"):
        make_backend(spec, 1).load()
    ((name, options), cpu) = given[0]
    assert (name, cpu) == (ort.TENSORRT, ort.CPU)
    assert options["trt_fp16_enable"] is True
    assert options["trt_engine_cache_enable"] is True
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_the_real_profile_is_counted(dense: Subject) -> None:
    backend = make_backend(replace(dense, options={"optimization": "none"}).to_json(), 1)
    assert isinstance(backend, ort.OnnxRuntime)
    backend.load()
    backend.bind([np.ones((1, 6), dtype=np.float32)])
    assert backend._profile() == {ort.CPU: 2}

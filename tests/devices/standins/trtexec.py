"""A stand-in for NVIDIA's trtexec, for tests: it takes the flags that edgevit gives it, computes
with ONNX Runtime on the CPU, and writes times and outputs in trtexec's JSON. Its times mean
nothing.

Variables make it another version or break it: STANDIN_TRTEXEC_VERSION (8201), ..._WARMUPS (write
the warm-up's times too, as before 8.6), ..._SECONDS (of a build), ..._FAIL (text of an error),
..._LOG (a file that every command line is added to), ..._SCALE (multiplies outputs).
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

HELP = """&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --help
=== Model Options ===
  --onnx=<file>               ONNX model
=== Build Options ===
{build}
  --fp16                      Enable fp16 precision, in addition to fp32 (default = disabled)
  --saveEngine=<file>         Save the serialized engine
  --loadEngine=<file>         Load a serialized engine
=== Inference Options ===
  --shapes=spec               Set input shapes for dynamic shapes inference inputs.
  --loadInputs=spec           Load input values from files (default = generate random inputs).
  --iterations=N              Run at least N inference iterations (default = 10)
  --warmUp=N                  Run for N milliseconds to warmup before measuring (default = 200)
  --duration=N                Run at least N seconds wallclock time (default = 3)
  --exposeDMA                 Serialize DMA transfers to and from device (default = disabled).
  --exportTimes=<file>        Write the timing results in a json file
  --exportOutput=<file>       Write the output tensors to a json file
"""
OLD = "  --workspace=N               Set workspace size in megabytes\n  --buildOnly"
NEW = "  --memPoolSize=poolspec      Specify the size constraints\n  --skipInference"
KNOWN = {
    "onnx", "saveEngine", "loadEngine", "buildOnly", "skipInference", "fp16", "workspace", "shapes",
    "memPoolSize", "loadInputs", "iterations", "warmUp", "duration", "exposeDMA", "exportTimes",
    "exportOutput",
}  # fmt: skip

VERSION = os.environ.get("STANDIN_TRTEXEC_VERSION", "8201")


def main(flags):
    if "STANDIN_TRTEXEC_LOG" in os.environ:
        with Path(os.environ["STANDIN_TRTEXEC_LOG"]).open("a") as log:
            log.write(" ".join(flags) + "\n")
    if flags == ["--help"]:
        print(HELP.format(version=VERSION, build=OLD if int(VERSION) < 8600 else NEW))
        return
    given = dict(flag.lstrip("-").partition("=")[::2] for flag in flags)
    unknown = sorted(set(given) - KNOWN)
    if unknown:
        fail("Unknown option: --" + unknown[0])
    if os.environ.get("STANDIN_TRTEXEC_FAIL"):
        fail(os.environ["STANDIN_TRTEXEC_FAIL"])
    if "onnx" in given:
        build(given)
    else:
        infer(given)
    print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{VERSION}]")


def build(given):
    time.sleep(float(os.environ.get("STANDIN_TRTEXEC_SECONDS", "0")))
    session = onnxruntime.InferenceSession(given["onnx"], providers=["CPUExecutionProvider"])
    dynamic = any(not isinstance(size, int) for i in session.get_inputs() for size in i.shape)
    if given.get("shapes") and not dynamic:
        fail("Static model does not take explicit shapes since the shape of inference tensors "
             "will be determined by the model itself")  # fmt: skip
    shutil.copyfile(given["onnx"], given["saveEngine"])


def infer(given):
    session = onnxruntime.InferenceSession(given["loadEngine"], providers=["CPUExecutionProvider"])
    print("[I] Engine loaded in 0.0125 sec.")
    shapes = dict(pair.split(":") for pair in given.get("shapes", "").split(",") if pair)
    files = dict(pair.split(":") for pair in given.get("loadInputs", "").split(",") if pair)
    feed = {}
    for tensor in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in tensor.shape]
        if tensor.name in shapes:
            shape = [int(size) for size in shapes[tensor.name].split("x")]
        values = np.random.rand(*shape).astype(np.float32)
        if tensor.name in files:
            values = np.fromfile(files[tensor.name], dtype=np.float32)
            if values.size != np.prod(shape):
                fail("Note: CRITICAL The size of the input file does not match")
        feed[tensor.name] = values.reshape(shape)
    outputs = session.run(None, feed)
    if "exportOutput" in given:
        export_outputs(given["exportOutput"], [o.name for o in session.get_outputs()], outputs)
    if "exportTimes" in given:
        export_times(given["exportTimes"], int(given["iterations"]), float(given["warmUp"]))


def export_times(path, iterations, warm_up_ms):
    entries, start = [], 0.0
    count = iterations + (4 if warm_up_ms else 0)
    for number in range(count):
        warm = number >= count - iterations
        start = warm_up_ms + number if warm else number * warm_up_ms / 5
        h2d, d2h = 0.0625, 0.03125
        compute = 2.5 + 0.001 * (number % 7) if warm else 99.5
        entry = {"startEnqMs": start, "endEnqMs": start + 0.5, "startComputeMs": start + h2d,
                 "endComputeMs": start + h2d + compute, "h2dMs": h2d, "computeMs": compute,
                 "d2hMs": d2h, "latencyMs": h2d + compute + d2h}  # fmt: skip
        if warm or os.environ.get("STANDIN_TRTEXEC_WARMUPS"):
            entries.append(entry)
    Path(path).write_text(json.dumps(entries))


def export_outputs(path, names, outputs):
    scale = float(os.environ.get("STANDIN_TRTEXEC_SCALE", "1"))
    parts = []
    for name, array in zip(names, outputs, strict=True):
        values = ", ".join(f"{value * scale:g}" for value in array.ravel())
        size = "x".join(str(size) for size in array.shape)
        head = f'{{ "name" : "{name}"\n  , "dimensions" : "{size}"'
        parts.append(f'{head}\n  , "values" : [ {values} ]\n  }}')
    Path(path).write_text("[\n  " + "\n, ".join(parts) + "\n]\n")


def fail(text):
    print("[E] " + text)
    print(f"&&&& FAILED TensorRT.trtexec [TensorRT v{VERSION}]")
    sys.exit(1)


main(sys.argv[1:])

"""Import the runtimes that are named as arguments, and have each compute something tiny."""

import base64
import importlib
import json
import os
import sys

# onnxruntime 1.29 and later would write an identifier into the user's home, and send it with more.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# So would OpenVINO, which does without where the package that does so is not there.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

#: max(x, 0) of two numbers, opset 13, IR 7.
RELU = "CAc6MwoMCgF4EgF5IgRSZWx1EgFnWg8KAXgSCgoICAESBAoCCAJiDwoBeRIKCggIARIECgIIAkIECgAQDQ=="


def numpy() -> None:
    """A product that goes through its linear algebra library."""
    import numpy as np

    matrix = np.arange(64, dtype=np.float32).reshape(8, 8)
    if (matrix @ np.eye(8, dtype=np.float32) != matrix).any():
        raise RuntimeError("numpy multiplies matrices wrongly")


def onnxruntime() -> None:
    """A network of one operator."""
    import numpy as np
    import onnxruntime as ort

    model = base64.b64decode(RELU)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.array([-1, 2], dtype=np.float32)})
    if result.tolist() != [0.0, 2.0]:
        raise RuntimeError("onnxruntime computes max(-1, 0), max(2, 0) as {}".format(result))


def load(module: str) -> None:
    """Load a runtime's library; nothing is computed."""
    importlib.import_module(module)


CHECKS = {"numpy": numpy, "onnxruntime": onnxruntime}

for name in sys.argv[1:]:
    if name in CHECKS:
        CHECKS[name]()
    else:
        load(name)
    print(json.dumps(name), flush=True)

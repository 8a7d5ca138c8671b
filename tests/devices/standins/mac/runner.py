"""A stand-in for coremltools' runner app on an iPhone, which speaks JSON-RPC through files.

It knows no Core ML: its predictions are golden outputs (STANDIN_GOLDEN), found by their inputs and
scaled by STANDIN_SCALE, and its durations are made up: 80 ms to load, 2 ms and some to predict.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(sys.argv[1]) / "Documents" / "modelrunnerd"
TYPES = {"Float16": np.float16, "Float32": np.float32, "Int32": np.int32}


def serve():
    done, models, count, parent = set(), {}, 0, os.getppid()
    while True:
        for message in sorted((ROOT / "requests" / "messages").glob("*/message.json")):
            if message not in done:
                done.add(message)
                count += 1
                handle(json.loads(message.read_text()), models, count)
        if os.getppid() != parent:
            return
        time.sleep(0.01)


def handle(request, models, count):
    params, resource = request["params"], None
    identity = {"modelID": params["modelID"]}
    folder = ROOT / "responses" / request["id"]
    folder.mkdir(parents=True)
    reply = {"jsonrpc": "2.0", "id": request["id"]}
    if "resource" in request:
        resource = ROOT / "requests" / "resources" / request["id"] / request["resource"]
    method = request["method"].split(".")[1]
    if method == "Load":
        models[params["modelID"]] = (resource, params["computeUnits"])
        reply["result"] = {**identity, "duration": 80_000_000}
    elif method == "Prediction":
        described = predict(params["inputs"], resource.read_bytes(), folder / "outputs.bin")
        duration = 2_000_000 + 1000 * (count % 5)
        reply.update(resource="outputs.bin")
        reply["result"] = {**identity, "outputs": described, "duration": duration}
    elif method == "ComputePlan":
        reply["result"] = {**identity, "infos": plan(*models[params["modelID"]])}
    else:
        reply["result"] = identity
    partial = folder / "partial"
    partial.write_text(json.dumps(reply))
    partial.rename(folder / "message.json")


def predict(inputs, data, path):
    given = {name: read(told, data) for name, told in inputs.items()}
    with np.load(os.environ["STANDIN_GOLDEN"]) as golden:
        arrays = {key: golden[key] for key in golden.files}
    samples = len(next(iter(arrays.values())))
    (sample,) = [
        i for i in range(samples)
        if all(np.array_equal(arrays["input." + n][i], a) for n, a in given.items())
    ]  # fmt: skip
    scale = float(os.environ.get("STANDIN_SCALE", "1"))
    described, content = {}, b""
    for key, array in arrays.items():
        if key.startswith("output."):
            values = np.ascontiguousarray(array[sample] * scale, dtype=np.float32)
            described[key[len("output.") :]] = {
                "shape": list(values.shape),
                "strides": [stride // 4 for stride in values.strides],
                "dataType": "Float32",
                "storage": {"offset": len(content), "size": values.nbytes},
            }
            content += values.tobytes()
    path.write_bytes(content)
    return described


def read(told, data):
    start, size = told["storage"]["offset"], told["storage"]["size"]
    return np.frombuffer(data[start : start + size], TYPES[told["dataType"]]).reshape(told["shape"])


def plan(model, units):
    infos = []
    unit = {"CPU_ONLY": "cpu", "CPU_AND_GPU": "gpu"}.get(units, "neuralEngine")
    for kind, outputs in json.loads((model / "operators.json").read_text()):
        if kind == "const":
            continue
        place = {"cpu": {}} if kind == "reshape" or unit == "cpu" else {unit: {"totalCoreCount": 8}}
        path = [
            {"program": {}},
            {"programFunction": {"data": {"name": "main"}}},
            {"programBlock": {"data": {"index": -1}}},
            {"programOperation": {"data": {"outputName": outputs[0]}}},
        ]
        usage = {"preferred": place, "supported": [place]}
        infos.append({"deviceUsage": usage, "path": {"components": path}, "estimatedCost": None})
    return infos


serve()

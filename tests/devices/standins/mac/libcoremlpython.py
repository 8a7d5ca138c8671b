"""FakeCoreMLRuntime: a stand-in for coremltools' native library, which only its macOS wheel has.

It has the names, arguments and results that the Python of coremltools 9 relies on. It computes with
edgevit's reference interpreter of MIL; a compiled model is the package and a list of its operators.
Nothing here is Core ML: times are made up, and so is which unit an operator runs on.

STANDIN_PLAN="old" is a macOS without compute plans; STANDIN_ANE="none" a chip that runs nothing on
its Neural Engine.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

UNITS = {"CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"}
#: Operators that this stand-in leaves to the CPU.
ON_CPU = {"cast", "reshape"}


class _MLModelAssetProxy:
    pass


class _MLCPUComputeDeviceProxy:
    pass


class _MLGPUComputeDeviceProxy:
    pass


class _MLNeuralEngineComputeDeviceProxy:
    def get_total_core_count(self):
        return 16


class _MLComputePlanProxy:
    def __init__(self, path=None, units=None):
        self._units = units
        self._structure = None if path is None else _MLModelProxy.get_model_structure(path)

    @property
    def model_structure(self):
        return self._structure

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        from coremltools.models import compute_device as devices
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        if operation.operator_name == "const":
            return None
        cpu = devices.MLCPUComputeDevice(_MLCPUComputeDeviceProxy())
        gpu = devices.MLGPUComputeDevice(_MLGPUComputeDeviceProxy())
        ane = devices.MLNeuralEngineComputeDevice(_MLNeuralEngineComputeDeviceProxy())
        have = {
            "CPU_ONLY": [cpu],
            "CPU_AND_GPU": [gpu, cpu],
            "CPU_AND_NE": [ane, cpu],
            "ALL": [ane, gpu, cpu],
        }[self._units]
        if os.environ.get("STANDIN_ANE") == "none":
            have = [device for device in have if device is not ane]
        preferred = cpu if operation.operator_name in ON_CPU else have[0]
        return MLComputePlanDeviceUsage(preferred, have)

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        return None


class _MLModelProxy:
    def __init__(self, path, compute_units, function_name, optimization_hints, asset):
        assert compute_units in UNITS
        assert isinstance(function_name, str)
        assert isinstance(optimization_hints, dict)
        assert asset is None
        if not path.endswith(".mlmodelc"):
            path = self.compileModel(path)
        package = Path(path) / "model.mlpackage"
        if not package.is_dir():
            raise RuntimeError(f"Unable to load model: {path} is no compiled model")
        from exporters.mil import Interpreter, read_package

        self._path, self._last = path, None
        self._program = read_package(package)
        self._interpreter = Interpreter(self._program)

    def predict(self, data, state):
        import torch

        assert state is None
        tensors = []
        for spec in self._program.inputs:
            if spec.name not in data:
                raise RuntimeError(f"Feature {spec.name} is required but not specified.")
            array = data[spec.name]
            if array.dtype == np.float16:
                raise RuntimeError("value type not convertible")
            if array.shape != spec.shape:
                raise RuntimeError(f"MultiArray shape {array.shape} does not match {spec.shape}")
            tensors.append(torch.from_numpy(np.ascontiguousarray(array)))
        self._last = 1_500_000
        outputs = self._interpreter(tensors)
        return {
            spec.name: out.numpy() for spec, out in zip(self._program.outputs, outputs, strict=True)
        }

    def get_compiled_model_path(self):
        return self._path

    def get_load_duration_in_nano_seconds(self):
        return 250_000_000

    def get_last_predict_duration_in_nano_seconds(self):
        return self._last

    @staticmethod
    def maximum_supported_specification_version():
        return 9

    @staticmethod
    def compileModel(path):
        from coremltools.models.utils import load_spec

        block = load_spec(path).mlProgram.functions["main"]
        (block,) = block.block_specializations.values()
        operators = [[op.type, [out.name for out in op.outputs]] for op in block.operations]
        folder = Path(tempfile.mkdtemp()) / (Path(path).stem + ".mlmodelc")
        shutil.copytree(path, folder / "model.mlpackage")
        (folder / "operators.json").write_text(json.dumps(operators))
        return str(folder)

    @staticmethod
    def get_model_structure(path):
        from coremltools.models import compute_plan as plans

        value = plans.MLModelStructureProgramNamedValueType
        operations = [
            plans.MLModelStructureProgramOperation(
                inputs={},
                operator_name=kind,
                outputs=[value(name, plans.MLModelStructureProgramValueType()) for name in outputs],
                blocks=[],
                __proxy__=None,
            )
            for kind, outputs in json.loads((Path(path) / "operators.json").read_text())
        ]
        block = plans.MLModelStructureProgramBlock([], operations, [])
        main = plans.MLModelStructureProgramFunction([], block)
        program = plans.MLModelStructureProgram({"main": main})
        return plans.MLModelStructure(None, program, None)

    @staticmethod
    def get_compute_plan(path, compute_units):
        from coremltools.models.compute_plan import MLComputePlan

        if os.environ.get("STANDIN_PLAN") == "old":
            raise RuntimeError("MLComputePlan is only available on macOS >= 14.4")
        return MLComputePlan(_MLComputePlanProxy(path, compute_units))

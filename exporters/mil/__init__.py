"""A reference interpreter for Core ML programs: the saved package, read back and run on torch.

Core ML itself runs on Apple's systems only. The package it would run is a program in Apple's model
intermediate language (MIL) and a file of weights, both of which can be read anywhere. Executing
that program op by op, as the MIL documentation defines each op, proves the graph and the weights of
the file; what it cannot prove is Apple's own kernels.
"""

from exporters.mil.interpreter import Extreme, Interpreter
from exporters.mil.program import MilOp, MilProgram, MilType, read_package

__all__ = ["Extreme", "Interpreter", "MilOp", "MilProgram", "MilType", "read_package"]

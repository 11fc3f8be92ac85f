"""The operator's names: ONNX domain, op, version, inputs and attributes. The one place they are written down in Python.

The contract itself (shapes, dtypes, formula) is in ``kernels/include/edgemamba/scan.h``; a readable implementation of it is
:func:`edgemamba.runtime.reference.selective_scan`.
"""

from __future__ import annotations

DOMAIN = "edgemamba"
OP_TYPE = "SelectiveScan"
OP_VERSION = 1

INPUT_NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "order")
OUTPUT_NAME = "y"

# TensorRT's parser looks a plugin up by the node's type and these two attributes; without them, parsers from 10.15 on
# prefer the function body to the plugin. They are constants of the operator, not options.
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "edgemamba"

# softplus(x) is x itself above this (PyTorch's and mamba_ssm's threshold).
SOFTPLUS_THRESHOLD = 20.0

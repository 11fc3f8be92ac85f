"""An official Vim checkpoint to a bundle that is proved equal to PyTorch.

    python examples/official_checkpoint.py vim_t_midclstok_76p1acc.pth vim_tiny/

The checkpoint comes from the authors (https://huggingface.co/hustvl/Vim-tiny-midclstok) and keeps their licence.
"""

import sys

from edgemamba.export import export, verify
from edgemamba.train import create_model, load_checkpoint

checkpoint, folder = sys.argv[1:3]
model_name = sys.argv[3] if len(sys.argv) > 3 else "vim_tiny"

model = create_model(model_name)
print(
    load_checkpoint(model, checkpoint)
)  # which layout the file has, what was adapted; refuses anything that does not fit

bundle = export(model, folder, source=checkpoint, dynamic=("batch",))
report = verify(folder)  # PyTorch, ONNX Runtime with our kernel, stock ONNX Runtime: the same inputs through each
print(bundle, "parity:", "passed" if report.passed else "FAILED")
sys.exit(0 if report.passed else 1)

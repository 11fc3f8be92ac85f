"""ONNX Runtime on the GPU (``ort-cuda``): its CUDA provider, with our kernel in its stream.

No engine has to be built, which makes it the way to run a bundle on a GPU that has no TensorRT. Input and outputs are bound:
a frame is copied into the same device memory each time, and the logits are the only thing that comes back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime import native
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.engines.ort import OrtEngine
from edgemamba.runtime.errors import EngineError, NativeLibraryError
from edgemamba.runtime.extras import require

if TYPE_CHECKING:
    import onnxruntime

_PROVIDER = "CUDAExecutionProvider"
_DEVICE = "cuda"


class OrtCudaEngine(OrtEngine):
    """ONNX Runtime's CUDA provider with our selective-scan kernel. Not thread-safe: the input's memory is one."""

    backend = "ort-cuda"
    kernel = True
    # Shapes and other small integers are computed on the CPU, beside the GPU.
    providers = (_PROVIDER, "CPUExecutionProvider")
    # On by default. TF32 keeps ten bits of the mantissa: past what `edgemamba verify` allows a float32 bundle.
    provider_options: ClassVar[Mapping[str, str]] = {"use_tf32": "0"}

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        ort = require("onnxruntime")
        if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN in NVIDIA's wheels, where they come from those
            ort.preload_dlls()
        super().__init__(bundle, threads=threads)
        self._bound: onnxruntime.OrtValue | None = None
        if self._session is not None and self._session.get_providers()[0] != _PROVIDER:
            self._session = None
            raise EngineError(
                f"onnxruntime {ort.__version__} cannot load its CUDA provider: the CUDA and cuDNN libraries it was built "
                'for are missing: pip install "onnxruntime-gpu[cuda,cudnn]"'
            )

    @classmethod
    def unavailable(cls) -> str | None:
        reason = super().unavailable()
        if reason is not None:
            return reason
        ort = require("onnxruntime")
        if _PROVIDER not in ort.get_available_providers():
            return f'onnxruntime {ort.__version__} was built without CUDA: pip install "edgemamba[gpu]"'
        return scan_unavailable()

    def _run(
        self, session: onnxruntime.InferenceSession, names: list[str], frames: NDArray[np.generic]
    ) -> list[NDArray[np.generic]]:
        ort = require("onnxruntime")
        if self._bound is None or self._bound.shape() != list(frames.shape):
            self._bound = ort.OrtValue.ortvalue_from_numpy(frames, _DEVICE, 0)
        else:
            self._bound.update_inplace(frames)
        binding = session.io_binding()
        binding.bind_ortvalue_input(self.bundle.manifest.input.name, self._bound)
        for name in names:
            binding.bind_output(name, _DEVICE)
        session.run_with_iobinding(binding)
        values: list[NDArray[np.generic]] = binding.copy_outputs_to_cpu()
        return values

    def close(self) -> None:
        self._bound = None
        super().close()

    def describe(self) -> dict[str, Any]:
        return {name: fact for name, fact in super().describe().items() if name not in ("threads", "cpu")}


def scan_unavailable() -> str | None:
    """Why our CUDA kernel cannot run here, in one line; None where it can."""
    try:
        library = native.load_library()
    except NativeLibraryError as error:
        return str(error)
    if not hasattr(library, "em_cuda_available") or not hasattr(library, "RegisterCustomOps"):
        return f"{native.library_path()} was built without its CUDA or ONNX Runtime part: install edgemamba again"
    text = ctypes.create_string_buffer(512)
    function = library.em_cuda_available
    function.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    function.restype = ctypes.c_int
    status = function(text, len(text))
    return None if status == 0 else text.value.decode(errors="replace") or "no usable GPU"

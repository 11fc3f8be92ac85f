"""Engines that `edgemamba build` put into the bundle: TensorRT on the GPU they were built on, TensorRT-RTX on desktop GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.engines.cuda_driver import Cuda
from edgemamba.runtime.engines.tensorrt_library import TENSORRT, TENSORRT_RTX, Library, load_plugin, make_logger
from edgemamba.runtime.engines.tensorrt_records import choose, missing
from edgemamba.runtime.engines.tensorrt_session import TensorRTSession
from edgemamba.runtime.engines.tensors import check_input, empty_output
from edgemamba.runtime.errors import EngineError


class _TensorRTEngine(Engine):
    """What both share. Not thread-safe: one execution context, one stream."""

    library: ClassVar[Library]
    #: Whether the session captures CUDA graphs; TensorRT-RTX does by itself.
    capture: ClassVar[bool]

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        super().__init__(bundle, threads=threads)
        trt = self.library.load()
        self._version = str(trt.__version__)
        self._cuda = Cuda()
        self._session: TensorRTSession | None = None
        try:
            self._card = choose(bundle, self.library, self._version, self._cuda.device)
            logger = make_logger(trt)
            if self._card.plugin:
                load_plugin(trt, self.library, logger)
            path = bundle.file(self._card.file)  # its digest is checked before the library sees it
            try:
                self._session = TensorRTSession(
                    trt, self._cuda, logger, path.read_bytes(), bundle.manifest.input.name, capture=self.capture
                )
            except EngineError as error:
                raise EngineError(f"{self.library.title} {self._version} refuses {path}: {error}") from None
        except BaseException:
            self._cuda.release()
            raise

    @classmethod
    def unavailable(cls) -> str | None:
        return cls.library.unavailable()

    @classmethod
    def unsuited(cls, bundle: Bundle) -> str | None:
        return missing(bundle, cls.backend)

    def infer(self, frames: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """Run the graph; see :meth:`Engine.infer`. A batch larger than the engine's goes through it in parts."""
        if self._session is None:
            raise EngineError(f"{self.backend}: the engine was closed")
        manifest = self.bundle.manifest
        check_input(frames, manifest.input)
        if len(frames) == 0:
            return {output.name: empty_output(output) for output in manifest.outputs}
        least, most = self._session.bounds
        if any(not low <= size <= high for low, size, high in zip(least[1:], frames.shape[1:], most[1:], strict=True)):
            raise EngineError(f"{self._card.file} takes frames of {least[1:]} to {most[1:]}, not {frames.shape[1:]}")
        parts = [self._run(self._session, part) for part in split(frames, least[0], most[0])]
        names = [output.name for output in manifest.outputs]
        left = len(frames)
        for part in parts:  # the last part may have been filled up
            for name in names:
                part[name] = part[name][: min(left, most[0])]
            left -= most[0]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _run(self, session: TensorRTSession, frames: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        try:
            outputs = session.run(frames)
        except EngineError as error:
            raise EngineError(f"{self.backend} failed on an input of shape {frames.shape}: {error}") from error
        # BFloat16 and narrower logits would surprise: the manifest says what comes out.
        return {card.name: np.asarray(outputs[card.name], card.dtype) for card in self.bundle.manifest.outputs}

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
            self._cuda.release()

    def describe(self) -> dict[str, Any]:
        device = self._cuda.device
        return {
            "backend": self.backend,
            "version": self._version,
            "engine": self._card.file,
            "precision": self._card.precision,
            "plugin": self._card.plugin,
            "device": device.name,
            "compute_capability": device.capability,
            "driver_cuda": device.driver,
            "cuda_graph": self._session.captured if self._session is not None else False,
        }


class TensorRTEngine(_TensorRTEngine):
    """TensorRT 10 and 11."""

    backend = "tensorrt"
    library = TENSORRT
    capture = True


class TensorRTRTXEngine(_TensorRTEngine):
    """TensorRT for RTX: kernels are finished on the device, when the engine is loaded."""

    backend = "tensorrt-rtx"
    library = TENSORRT_RTX
    capture = False


def split(frames: NDArray[np.generic], least: int, most: int) -> Iterator[NDArray[np.generic]]:
    """Batches of at most ``most`` frames; the last is filled up to ``least`` by repeating its last frame."""
    for start in range(0, len(frames), most):
        part = frames[start : start + most]
        if len(part) < least:
            part = np.concatenate([part, np.repeat(part[-1:], least - len(part), axis=0)])
        yield part

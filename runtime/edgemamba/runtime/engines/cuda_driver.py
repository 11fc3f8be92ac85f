"""The few calls of the CUDA driver that an engine needs, through cuda-bindings: memory, one stream, graphs.

Neither torch nor pycuda, and no CUDA toolkit: the driver that every NVIDIA machine has is enough. One GPU is used: the
first that ``CUDA_VISIBLE_DEVICES`` shows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import EngineError, MissingExtraError
from edgemamba.runtime.extras import require

#: What the C interface calls CU_STREAM_NON_BLOCKING: work on the legacy default stream is not waited for.
_NON_BLOCKING = 1


@dataclass(frozen=True)
class Device:
    """The GPU that is used.

    Attributes:
        capability: its compute capability, as ``8.6``.
        driver: the newest CUDA version that the driver supports, as ``13.0``.
    """

    name: str
    capability: str
    multiprocessors: int
    driver: str


def unavailable() -> str | None:
    """Why no GPU can be used here, in one line; None where one can."""
    try:
        driver = require("cuda.bindings.driver", purpose="engines on a GPU")
    except MissingExtraError as error:
        return str(error)
    except ImportError as error:  # installed, and not the package that is meant, or broken
        return f"cuda-bindings cannot be imported: {' '.join(str(error).split())}"
    try:
        count = _checked(driver, driver.cuInit(0)) or _checked(driver, driver.cuDeviceGetCount())
    except EngineError as error:
        return str(error)
    except Exception:  # depending on its release, cuda-bindings raises one of several where libcuda.so.1 is not there
        return "no NVIDIA driver (libcuda.so.1) on this machine"
    return None if count else "the NVIDIA driver shows no GPU"


def device() -> Device:
    """Facts about the GPU; call it only where :func:`unavailable` returns None.

    Raises:
        EngineError: the driver fails.
    """
    return Cuda().device


class Cuda:
    """The GPU's primary context, which TensorRT and ONNX Runtime use too, with the calls below made in it.

    Raises:
        EngineError: in each call, what the driver says.
    """

    def __init__(self) -> None:
        self._driver: Any = require("cuda.bindings.driver", purpose="engines on a GPU")
        self._call(self._driver.cuInit, 0)
        self._handle = self._call(self._driver.cuDeviceGet, 0)
        self._context = self._call(self._driver.cuDevicePrimaryCtxRetain, self._handle)
        self.device = self._describe()

    def make_current(self) -> None:
        """Each thread has a current context of its own, so that every entry point calls this first."""
        self._call(self._driver.cuCtxSetCurrent, self._context)

    def release(self) -> None:
        """Give up the context, which goes when its last user does."""
        self._call(self._driver.cuDevicePrimaryCtxRelease, self._handle)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the device."""
        return int(self._call(self._driver.cuMemAlloc, max(size, 1)))

    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` gave."""
        self._call(self._driver.cuMemFree, address)

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes on the host that the GPU copies from and to without the CPU. Not collected: see the next."""
        address = int(self._call(self._driver.cuMemHostAlloc, max(size, 1), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        """Give back what :meth:`allocate_pinned` gave; every view of it is invalid from here on."""
        self._call(self._driver.cuMemFreeHost, memory.ctypes.data)

    def create_stream(self) -> int:
        """A new stream's handle."""
        return int(self._call(self._driver.cuStreamCreate, _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """End a stream once its work is done."""
        self._call(self._driver.cuStreamDestroy, stream)

    def upload(self, address: int, memory: NDArray[np.uint8], size: int, stream: int) -> None:
        """Enqueue a copy of the first ``size`` bytes of pinned memory to the device."""
        self._call(self._driver.cuMemcpyHtoDAsync, address, memory.ctypes.data, size, stream)

    def download(self, memory: NDArray[np.uint8], address: int, size: int, stream: int) -> None:
        """Enqueue a copy of ``size`` bytes from the device to pinned memory."""
        self._call(self._driver.cuMemcpyDtoHAsync, memory.ctypes.data, address, size, stream)

    def synchronize(self, stream: int) -> None:
        """Wait for everything in the stream."""
        self._call(self._driver.cuStreamSynchronize, stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """Record what ``enqueue`` puts into the stream as a graph, without running it.

        Raises:
            EngineError: something in it cannot be captured; the stream can be used as before.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._driver.cuStreamBeginCapture, stream, mode)
        try:
            enqueue()
        except BaseException:
            # Ended in any case: a stream that is being captured can do nothing else.
            status, graph = self._driver.cuStreamEndCapture(stream)
            if int(status) == 0:
                self._call(self._driver.cuGraphDestroy, graph)
            raise
        graph = self._call(self._driver.cuStreamEndCapture, stream)
        try:
            return self._call(self._driver.cuGraphInstantiate, graph, 0)
        finally:
            self._call(self._driver.cuGraphDestroy, graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Enqueue a captured graph."""
        self._call(self._driver.cuGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Free a captured graph."""
        self._call(self._driver.cuGraphExecDestroy, graph)

    def _describe(self) -> Device:
        attributes = self._driver.CUdevice_attribute

        def attribute(name: str) -> int:
            key = getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(self._call(self._driver.cuDeviceGetAttribute, key, self._handle))

        name: bytes = self._call(self._driver.cuDeviceGetName, 256, self._handle)
        version = int(self._call(self._driver.cuDriverGetVersion))
        return Device(
            name=name.split(b"\0")[0].decode(errors="replace"),
            capability=f"{attribute('COMPUTE_CAPABILITY_MAJOR')}.{attribute('COMPUTE_CAPABILITY_MINOR')}",
            multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return _checked(self._driver, function(*arguments))


def _checked(driver: Any, answer: tuple[Any, ...]) -> Any:
    """What a call returns besides its status, which must be success."""
    status, *values = answer
    if int(status) != 0:
        explained = driver.cuGetErrorString(status)
        text = explained[1].decode() if int(explained[0]) == 0 and explained[1] else f"error {int(status)}"
        raise EngineError(f"CUDA: {text}")
    return values[0] if values else None

"""Stand-ins for a GPU: a driver whose device memory is the host's, and a TensorRT whose one engine names colours.

They check what the real ones would crash on: addresses that were not allocated, copies past an allocation's end, work in a
stream that was destroyed, memory freed twice, and, at the end (:meth:`FakeDriver.leaks`), what was never freed.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

SUCCESS, OUT_OF_MEMORY, CAPTURE_UNSUPPORTED = 0, 2, 900
TEXTS = {OUT_OF_MEMORY: b"out of memory", CAPTURE_UNSUPPORTED: b"operation not permitted when stream is capturing"}


class FakeDriver(types.ModuleType):
    """``cuda.bindings.driver`` as far as the runtime uses it. ``fail[name] = status`` makes a call fail."""

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    class CUdevice_attribute:  # noqa: N801 - the driver's name
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = "major"
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = "minor"
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = "multiprocessors"

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.fail: dict[str, int] = {}
        self.calls: list[str] = []
        self.device_memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.graphs: list[list[Callable[[], None]]] = []
        self.contexts = 0
        self.capturing: list[Callable[[], None]] | None = None
        self.facts = {"major": 8, "minor": 7, "multiprocessors": 16}

    def leaks(self) -> dict[str, int]:
        """What is still held, by kind."""
        held = {
            "device memory": len(self.device_memory),
            "pinned memory": len(self.pinned),
            "streams": len(self.streams),
            "graphs": len(self.graphs),
            "contexts": self.contexts,
        }
        return {kind: count for kind, count in held.items() if count}

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cu") or name == "cuGetErrorString":
            return value

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return (self.fail[name], *[None] * 1) if name in self.fail else value(*arguments)

        return call

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return SUCCESS, TEXTS.get(int(status), b"unknown error")

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        return (SUCCESS,)

    def cuDeviceGetCount(self) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, 1

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, ordinal

    def cuDeviceGetName(self, size: int, device: int) -> tuple[int, bytes]:  # noqa: N802
        return SUCCESS, b"Fake Orin\0\0\0"

    def cuDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, 12060

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, self.facts[attribute]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, str]:  # noqa: N802
        self.contexts += 1
        return SUCCESS, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[int]:  # noqa: N802
        self.contexts -= 1
        return (SUCCESS,)

    def cuCtxSetCurrent(self, context: str) -> tuple[int]:  # noqa: N802
        assert self.contexts > 0, "a context that was given up"
        return (SUCCESS,)

    def cuMemAlloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, _allocate(self.device_memory, size)

    def cuMemFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.device_memory[address]
        return (SUCCESS,)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, _allocate(self.pinned, size)

    def cuMemFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        del self.pinned[address]
        return (SUCCESS,)

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:  # noqa: N802
        self.streams.add(77)
        return SUCCESS, 77

    def cuStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams.remove(stream)
        return (SUCCESS,)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert stream in self.streams
        assert self.capturing is None, "a stream that is being captured cannot be waited for"
        return (SUCCESS,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        _check(self.device_memory, to, size)
        _check(self.pinned, source, size)
        self.enqueue(stream, lambda: ctypes.memmove(to, source, size))
        return (SUCCESS,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        _check(self.pinned, to, size)
        _check(self.device_memory, source, size)
        self.enqueue(stream, lambda: ctypes.memmove(to, source, size))
        return (SUCCESS,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        assert stream in self.streams
        assert self.capturing is None
        self.capturing = []
        return (SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        graph, self.capturing = self.capturing, None
        assert graph is not None
        self.graphs.append(graph)
        return SUCCESS, graph

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802
        executable = list(graph)
        self.graphs.append(executable)
        return SUCCESS, executable

    def cuGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        self._forget(graph)
        return (SUCCESS,)

    def cuGraphExecDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        self._forget(graph)
        return (SUCCESS,)

    def cuGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:  # noqa: N802
        for work in graph:
            self.enqueue(stream, work)
        return (SUCCESS,)

    def enqueue(self, stream: int, work: Callable[[], Any]) -> None:
        """Do it now, or note it in the graph that is being captured."""
        assert stream in self.streams, "a stream that was destroyed"
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def _forget(self, graph: Any) -> None:
        places = [i for i, known in enumerate(self.graphs) if known is graph]
        assert places, "a graph that was destroyed"
        del self.graphs[places[0]]


def _allocate(memory: dict[int, Any], size: int) -> int:
    buffer = (ctypes.c_uint8 * size)()
    address = ctypes.addressof(buffer)
    memory[address] = buffer
    return address


def _check(memory: dict[int, Any], address: int, size: int) -> None:
    assert address in memory, "an address that was not allocated"
    assert size <= len(memory[address]), f"{size} bytes of an allocation of {len(memory[address])}"


class Mode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class FakeTensorRT(types.ModuleType):
    """``tensorrt`` as far as the runtime uses it; its engine is conftest's colour graph for 1 to ``most`` frames."""

    TensorIOMode = Mode

    class ILogger:
        pass

    def __init__(self, driver: FakeDriver, version: str = "10.3.0", least: int = 1, most: int = 4) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.driver = driver
        self.least, self.most = least, most
        self.plugins: list[str] = []
        self.creators: list[tuple[str, str, str]] = []
        self.captures = True
        self.runs = 0

    def nptype(self, dtype: str) -> type:
        return {"uint8": np.uint8, "float": np.float32}[dtype]

    def get_plugin_registry(self) -> FakeTensorRT:
        return self

    def get_creator(self, *key: str) -> object | None:
        return object() if key in self.creators else None

    def load_library(self, path: str) -> str | None:
        self.plugins.append(path)
        return path

    def Runtime(self, logger: Any) -> _Runtime:  # noqa: N802
        return _Runtime(self, logger)


class _Runtime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        if not plan.startswith(b"fake engine"):
            self.logger.log(1, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag failure)")
            return None
        return _Engine(self.trt, self.logger)


class _Engine:
    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, 32, 32, 3) for batch in (self.trt.least, self.trt.least, self.trt.most)]

    def get_tensor_name(self, index: int) -> str:
        return ("frames", "logits")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "frames" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if name == "frames" else "float"

    def create_execution_context(self) -> _Context:
        return _Context(self.trt, self.logger)


class _Context:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.batch = 0
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if not self.trt.least <= shape[0] <= self.trt.most:
            return False
        self.batch = shape[0]
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batch, 32, 32, 3) if name == "frames" else (self.batch, 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        driver, batch = self.trt.driver, self.batch
        if driver.capturing is not None and not self.trt.captures:
            self.logger.log(1, "[cask.cpp::enqueue::12] Error Code 1: Cask (cannot be captured)")
            return False

        def work() -> None:
            self.trt.runs += 1
            pixels = (ctypes.c_uint8 * (batch * 32 * 32 * 3)).from_address(self.addresses["frames"])
            values = np.ctypeslib.as_array(pixels).reshape(batch, 32, 32, 3).astype(np.float32).mean((1, 2)) * (8 / 255)
            logits = np.ascontiguousarray(values, np.float32)
            ctypes.memmove(self.addresses["logits"], logits.ctypes.data, logits.nbytes)

        driver.enqueue(stream, work)
        return True

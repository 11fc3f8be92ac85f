"""A deserialised engine with its buffers: what is allocated is allocated once, and a frame costs two copies and a launch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.engines.cuda_driver import Cuda
from edgemamba.runtime.errors import EngineError

LOGGER = logging.getLogger("edgemamba.runtime")


@dataclass
class _Tensor:
    """An input or output: room for its largest shape on the device and, pinned, on the host."""

    name: str
    dtype: np.dtype[Any]
    address: int
    memory: NDArray[np.uint8]
    shape: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Of the current shape."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> NDArray[np.generic]:
        """The pinned memory as the array that it holds."""
        return self.memory[: self.bytes].view(self.dtype).reshape(self.shape)


class TensorRTSession:
    """One engine, one context, one stream. Not thread-safe.

    Once a shape has run twice, uploads, kernels and downloads are captured as one CUDA graph, which every later run of that
    shape launches; another shape drops it. Where something in the engine cannot be captured, runs go on without.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        plan: the serialised engine.
        input_name: the engine's one input.
        capture: whether to use CUDA graphs; TensorRT-RTX captures by itself.

    Raises:
        EngineError: the library refuses the engine, or memory is short.
    """

    def __init__(
        self, trt: Any, cuda: Cuda, logger: Any, plan: bytes, input_name: str, *, capture: bool = True
    ) -> None:
        self._trt = trt
        self._cuda = cuda
        self._logger = logger
        self._tensors: dict[str, _Tensor] = {}
        self._stream = 0
        self._graph: Any = None
        self._capture = capture
        self._runs = 0
        cuda.make_current()
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(logger.reason("the engine cannot be read"))
        self._context = self._create_context()
        if self._context is None:
            raise EngineError(logger.reason("no execution context can be made; is the GPU's memory full?"))
        least, _, most = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(input_name, 0))
        #: Smallest and largest shape of the input.
        self.bounds = least, most
        try:
            self._stream = cuda.create_stream()
            self._allocate(input_name, most)
        except BaseException:
            self.close()
            raise
        self._input = self._tensors[input_name]

    def run(self, values: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """Every output for one input.

        Args:
            values: of the input's dtype, and a shape within :attr:`bounds`.

        Returns:
            Arrays of their own: the next run does not change them.

        Raises:
            EngineError: the library or the driver failed.
        """
        self._cuda.make_current()
        if values.shape != self._input.shape:
            self._reshape(values.shape)
        np.copyto(self._input.array(), values, casting="no")
        if self._graph is None and self._capture and self._runs > 0:
            self._record()
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)
        self._runs += 1
        return {name: tensor.array().copy() for name, tensor in self._tensors.items() if tensor is not self._input}

    @property
    def captured(self) -> bool:
        """Whether runs are launches of a CUDA graph at present."""
        return self._graph is not None

    def close(self) -> None:
        """Free everything. The session must not be used afterwards; closing twice is fine.

        After an error that stays with the context (an illegal access, a lost GPU) the driver refuses these calls too. All are
        made nevertheless; what it says is logged, because the error itself was raised before.
        """
        stream, self._stream = self._stream, 0
        with ExitStack() as steps:  # the last pushed is the first called
            # In this order: a context must not outlive its engine, nor that its runtime.
            steps.callback(self._forget)
            if stream:
                steps.callback(self._quietly, self._cuda.destroy_stream, stream)
            for tensor in self._tensors.values():
                steps.callback(self._quietly, self._cuda.free_pinned, tensor.memory)
                steps.callback(self._quietly, self._cuda.free, tensor.address)
            self._tensors.clear()
            if self._graph is not None:
                steps.callback(self._quietly, self._cuda.destroy_graph, self._graph)
                self._graph = None
            if stream:
                steps.callback(self._quietly, self._cuda.synchronize, stream)
            steps.callback(self._quietly, self._cuda.make_current)

    def _forget(self) -> None:
        self._context = self._engine = self._runtime = None

    def _quietly(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except EngineError as error:
            LOGGER.debug("while the engine was closed: %s", error)

    def _create_context(self) -> Any:
        if self._capture or not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._engine.create_execution_context(config)

    def _allocate(self, input_name: str, most: tuple[int, ...]) -> None:
        """Room for every tensor at the largest input; outputs are largest there too, as their extents grow with it."""
        engine, context = self._engine, self._context
        if not context.set_input_shape(input_name, most):
            raise EngineError(self._logger.reason(f"{input_name} does not take its own largest shape {most}"))
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if name != input_name and engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                raise EngineError(f"the engine has a second input, {name}")
            shape = tuple(context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise EngineError(f"the shape of {name} depends on values: {shape}")
            dtype = np.dtype(self._trt.nptype(engine.get_tensor_dtype(name)))
            size = math.prod(shape) * dtype.itemsize
            memory = self._cuda.allocate_pinned(size)
            try:
                address = self._cuda.allocate(size)
            except BaseException:
                self._cuda.free_pinned(memory)
                raise
            self._tensors[name] = _Tensor(name, dtype, address, memory, shape)
            if not context.set_tensor_address(name, address):
                raise EngineError(self._logger.reason(f"the address of {name} is refused"))

    def _reshape(self, shape: tuple[int, ...]) -> None:
        self._drop_graph()
        if not self._context.set_input_shape(self._input.name, shape):
            raise EngineError(self._logger.reason(f"{self._input.name} does not take shape {shape}"))
        for tensor in self._tensors.values():
            tensor.shape = tuple(self._context.get_tensor_shape(tensor.name))
        self._runs = 0

    def _enqueue(self) -> None:
        """Upload, kernels, download, all in the stream."""
        tensor = self._input
        self._cuda.upload(tensor.address, tensor.memory, tensor.bytes, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(self._logger.reason("the engine could not be enqueued"))
        for tensor in self._tensors.values():
            if tensor is not self._input:
                self._cuda.download(tensor.memory, tensor.address, tensor.bytes, self._stream)

    def _record(self) -> None:
        """Capture one run; the run before it has settled everything that happens once per shape."""
        try:
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        except EngineError as error:
            self._capture = False
            self._logger.reason("")  # what was logged is not the reason of anything later
            LOGGER.info("running without a CUDA graph: %s", error)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
            self._graph = None

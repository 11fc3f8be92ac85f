"""The interface that every inference backend implements, and what is common to all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.bundle import LOGITS, Bundle
from edgemamba.runtime.errors import EngineError
from edgemamba.runtime.predictions import Predictions


class Engine(ABC):
    """A bundle loaded into one inference backend.

    Use it as a context manager, or call :meth:`close`. An engine is not thread-safe unless its backend says so.
    """

    #: The backend's name, as in ``load(path, backend=...)``.
    backend: ClassVar[str]

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        self.bundle = bundle
        self.threads = threads

    @classmethod
    @abstractmethod
    def unavailable(cls) -> str | None:
        """Why this backend cannot be used on this machine, in one line; None where it can."""

    @classmethod
    def unsuited(cls, bundle: Bundle) -> str | None:
        """Why this backend has no use for a bundle, in one line; None where it can try: most need only the graph."""
        return None

    @abstractmethod
    def infer(self, frames: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """Run the graph as it is.

        Args:
            frames: (B, H, W, C) of the dtype and size that the manifest's input states.

        Returns:
            Every output by name.

        Raises:
            EngineError: the backend refused the input or failed.
        """

    def close(self) -> None:  # noqa: B027 - optional: a backend that holds nothing has nothing to release
        """Release the backend's resources; the engine must not be used afterwards."""

    def describe(self) -> dict[str, Any]:
        """JSON-able facts about the backend as it runs here (versions, threads, device)."""
        return {"backend": self.backend}

    def __call__(self, frames: NDArray[np.generic] | Sequence[NDArray[np.generic]]) -> Predictions:
        """Preprocess and classify a batch.

        Args:
            frames: uint8 (B, H, W, 3) RGB, or a sequence of pictures (H, W, 3), (H, W, 1) or (H, W) of any sizes; uint8,
                uint16 or float32 (0..1). Pictures that have the input's size already are passed on untouched.
        """
        return self.predictions(self.infer(self.preprocess(frames)))

    def preprocess(self, frames: NDArray[np.generic] | Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """The graph's input (B, H, W, C) for these pictures; see :class:`~edgemamba.runtime.preprocessing.Preprocessing`."""
        recipe = self.bundle.manifest.preprocessing
        shape = (*recipe.size, recipe.channels)
        if isinstance(frames, np.ndarray) and frames.shape[1:] == shape and str(frames.dtype) == recipe.dtype:
            return frames
        fitted = [recipe.fit(picture) for picture in frames]
        return np.stack(fitted) if fitted else np.zeros((0, *shape), recipe.dtype)

    def predictions(self, outputs: dict[str, NDArray[np.generic]]) -> Predictions:
        """Wrap the graph's outputs.

        Raises:
            EngineError: they are not a classifier's, or not of as many classes as the manifest names.
        """
        if LOGITS not in outputs:
            raise EngineError(f"{self.bundle.path} has no output {LOGITS!r}; it has: {', '.join(outputs) or 'none'}")
        logits = np.asarray(outputs[LOGITS], np.float32)
        names = self.bundle.manifest.class_names
        if logits.ndim != 2 or (names and logits.shape[1] != len(names)):
            wanted = f"(batch, {len(names) or 'classes'})"
            raise EngineError(f"{self.bundle.path}: the graph returns {LOGITS} {logits.shape}, expected {wanted}")
        return Predictions(logits, tuple(names) if names else tuple(map(str, range(logits.shape[1]))), outputs)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""What is asked of a build, checked against the bundle before any library is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemamba.runtime.bundle import Manifest
from edgemamba.runtime.errors import ExportError

Backend = Literal["tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16"]
#: Smallest, best and largest shape of the input, (B, H, W, C) each.
Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

BACKENDS: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx")
#: What TensorRT-RTX 1.7 builds for, without a GPU; no Jetson is among them.
RTX_TARGETS = (75, 80, 86, 89, 120, 121)
# A batch that varies: engines are tuned for single frames, and take a few at once.
_DEFAULT_BATCHES = (1, 1, 8)


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        precision: None: the graph's own.
        shapes: ``MIN/OPT/MAX`` or one shape for all three; each is ``BxHxW``, or the batch alone. Empty: the image size
            that the bundle was exported for, and a batch of 1 to 8 where it varies.
        sm: TensorRT-RTX only: compute capabilities to build for, as 86 for 8.6. Empty: TensorRT-RTX's own choice.
        plugin: False: the scan is the graph's function instead, for comparison; much slower.
        timing_cache: TensorRT only: read where it exists, and written; makes the next build faster.
    """

    backend: Backend
    precision: Precision | None = None
    shapes: str = ""
    sm: tuple[int, ...] = ()
    plugin: bool = True
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ExportError(f"there is no backend {self.backend!r} to build for; choose {' or '.join(BACKENDS)}")
        if self.backend == "tensorrt" and self.sm:
            raise ExportError("--sm: TensorRT builds for the GPU it runs on; only tensorrt-rtx builds for others")
        if self.backend == "tensorrt-rtx" and self.timing_cache is not None:
            raise ExportError("--timing-cache: TensorRT-RTX times nothing while it builds, and keeps no such file")
        if self.timing_cache is not None:  # noticed now, not when an engine is built and the cache cannot be kept
            folder = self.timing_cache.absolute().parent
            if self.timing_cache.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
                raise ExportError(f"--timing-cache: {self.timing_cache} cannot be written")
        for target in self.sm:
            if target not in RTX_TARGETS:
                known = ", ".join(map(str, RTX_TARGETS))
                hint = "; a Jetson needs TensorRT itself: --backend tensorrt there" if target in (87, 101, 110) else ""
                raise ExportError(f"--sm {target}: TensorRT-RTX builds for {known}{hint}")

    def resolved_precision(self, manifest: Manifest) -> Precision:
        """The precision of the engine's arithmetic.

        Raises:
            ExportError: it is not the graph's and cannot be derived from it.
        """
        wanted = self.precision or manifest.precision
        if wanted == manifest.precision:
            return wanted
        if manifest.precision != "fp32":
            raise ExportError(
                f"--precision {wanted}: the bundle's graph is {manifest.precision}; export an fp32 bundle for that"
            )
        return wanted


def parse_sm(text: str) -> tuple[int, ...]:
    """``86,89`` to (86, 89), without repetitions.

    Raises:
        ExportError: something else stands there.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) < 4 for part in parts):
        raise ExportError(f"--sm {text}: give compute capabilities without the dot, separated by commas, as 86,89")
    return tuple(dict.fromkeys(int(part) for part in parts))


def profile(manifest: Manifest, shapes: str) -> Profile:
    """The input's smallest, best and largest shape.

    Raises:
        ExportError: ``shapes`` cannot be read, or is not among what the bundle's graph takes.
    """
    card = manifest.input.shape
    sizes = manifest.preprocessing.size
    if shapes:
        given = [_shape(part, shapes, sizes) for part in shapes.split("/")]
        if len(given) not in (1, 3):
            raise ExportError(f"--shapes {shapes}: give one shape, or MIN/OPT/MAX")
        least, best, most = given * 3 if len(given) == 1 else given
    else:
        batches = _DEFAULT_BATCHES if isinstance(card[0], str) else (card[0],) * 3
        least, best, most = ((batch, *sizes) for batch in batches)
    channels = manifest.preprocessing.channels
    full = tuple((*shape, channels) for shape in (least, best, most))
    for axis, (extent, values) in enumerate(zip(card, zip(*full, strict=True), strict=True)):
        if isinstance(extent, int) and set(values) != {extent}:
            name = ("batch", "height", "width", "channels")[axis]
            raise ExportError(
                f"--shapes {shapes}: the graph's {name} is {extent}; export with --dynamic {name} to vary it"
            )
        if not values[0] <= values[1] <= values[2]:
            raise ExportError(f"--shapes {shapes}: {values[0]}, {values[1]} and {values[2]} are not in ascending order")
    return full[0], full[1], full[2]


def _shape(text: str, shapes: str, sizes: tuple[int, int]) -> tuple[int, int, int]:
    numbers = text.strip().lower().split("x")
    if len(numbers) not in (1, 3) or not all(n.isdecimal() and 0 < int(n) < 2**31 for n in numbers):
        raise ExportError(
            f"--shapes {shapes}: give BATCHxHEIGHTxWIDTH or the batch alone, as 1x224x224/4x224x224/8x224x224"
        )
    if len(numbers) == 1:
        return int(numbers[0]), *sizes
    return int(numbers[0]), int(numbers[1]), int(numbers[2])

"""In what the releases of the library differ, each difference once.

| | TensorRT 10.0-10.6 | 10.7-10.14 | 10.15-10.x | 11 | RTX 1.x |
|---|---|---|---|---|---|
| a node that has both a function and a plugin | function | plugin | plugin (by namespace) | plugin | plugin |
| types | weak, or strong on request | same | same | strong | strong |
| builds for | the GPU at hand | same | same | same | any RTX, without one |

JetPack 6 has 10.3. ``kSTRONGLY_TYPED`` is another bit in 11 than in 10: it is always looked up by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgemamba.export.building.checks import version_numbers
from edgemamba.export.building.options import Backend, Precision
from edgemamba.runtime.errors import ExportError
from edgemamba.runtime.trt_plugin import MAJORS, RTX_MAJOR

Typing = Literal["weak", "strong", "implied"]
# From this release on a registered plugin is taken before a function of its name.
_PLUGIN_FIRST = (10, 7)


@dataclass(frozen=True)
class Dialect:
    """How one release is spoken to.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        version: as the library states it.
    """

    backend: Backend
    version: str

    def __post_init__(self) -> None:
        if self.backend == "tensorrt" and self.plugin_major not in MAJORS:
            raise ExportError(f"TensorRT {self.version} cannot be used: {' or '.join(map(str, MAJORS))} is needed")

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.backend == "tensorrt-rtx"

    @property
    def name(self) -> str:
        """The product's name and version."""
        return f"{'TensorRT-RTX' if self.rtx else 'TensorRT'} {self.version}"

    @property
    def module(self) -> str:
        """What Python imports."""
        return "tensorrt_rtx" if self.rtx else "tensorrt"

    @property
    def plugin_major(self) -> int:
        """Which plugin binary it loads; see :mod:`edgemamba.runtime.trt_plugin`."""
        return RTX_MAJOR if self.rtx else (version_numbers(self.version) or (0,))[0]

    @property
    def prefers_functions(self) -> bool:
        """Whether a node with a function never becomes a plugin: then the function must not be in the file."""
        return not self.rtx and version_numbers(self.version)[:2] < _PLUGIN_FIRST

    def typing(self, graph: Precision, wanted: Precision) -> Typing:
        """How the network's types are set: by builder flags, by a network flag, or in no way but the graph.

        Raises:
            ExportError: ``wanted`` is not the graph's precision, and this release takes types from the graph alone.
        """
        if self.rtx or self.plugin_major >= 11:
            if wanted != graph:
                remedy = (
                    "export again with --precision fp16"
                    if wanted == "fp16"
                    else "only TensorRT 10 can choose it while building"
                )
                raise ExportError(
                    f"--precision {wanted}: {self.name} takes types from the graph, which is {graph}: {remedy}"
                )
            return "implied"
        return "strong" if graph != "fp32" else "weak"

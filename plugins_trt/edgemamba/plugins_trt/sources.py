"""The C++ sources of the plugin and of the part of the kernels that is compiled into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgemamba.runtime.errors import EngineError


@dataclass(frozen=True)
class Sources:
    """A folder that holds ``plugins_trt/`` and ``kernels/``: a checkout, or the copy inside an installed wheel."""

    root: Path

    @property
    def plugin(self) -> list[Path]:
        """What the plugin is compiled from, beside :meth:`write_device_code`: the adapter, the kernels' validation and their
        CUDA half."""
        ours = [path for path in sorted((self.root / "plugins_trt/src").glob("*.cpp")) if path.name != "autoload.cpp"]
        kernels = self.root / "kernels/src"
        return [*ours, kernels / "arguments.cpp", *sorted(kernels.glob("cuda_*.cpp"))]

    @property
    def autoload(self) -> list[Path]:
        """What the autoload library is compiled from."""
        return [self.root / "plugins_trt/src" / name for name in ("autoload.cpp", "host.cpp")]

    @property
    def harness(self) -> list[Path]:
        """What the conformance harness is compiled from."""
        return [*sorted((self.root / "plugins_trt/harness").glob("*.cpp")), self.root / "plugins_trt/src/host.cpp"]

    @property
    def includes(self) -> list[Path]:
        """Folders of our own headers."""
        return [self.root / path for path in ("plugins_trt/src", "kernels/include", "kernels/src", "kernels")]

    @property
    def exports(self) -> Path:
        """The linker's list of what the plugin exports."""
        return self.root / "plugins_trt/src/exports.map"

    def write_device_code(self, folder: Path) -> Path:
        """Write the kernels' PTX as a C++ source, as ``kernels/cuda/embed_ptx.cmake`` does for CMake.

        Raises:
            EngineError: where there is not exactly one PTX file, or it cannot be a raw string.
        """
        found = sorted((self.root / "kernels/cuda/generated").glob("*.ptx"))
        text = found[0].read_text() if len(found) == 1 else ""
        if not text or ')ptx"' in text:
            raise EngineError(
                f"the device code in {self.root / 'kernels/cuda/generated'} is damaged: install edgemamba again"
            )
        # Compilers limit the length of one literal; adjacent ones are joined.
        pieces = "\n".join(f'R"ptx({text[at : at + 8000]})ptx"' for at in range(0, len(text), 8000))
        source = folder / "scan_ptx.cpp"
        source.write_text(
            f'#include "cuda_module.h"\nnamespace edgemamba {{\nconst char* const kScanPtx =\n{pieces};\n}}\n'
        )
        return source

    @property
    def compat(self) -> Path:
        """The folder with a stand-in for CUDA's header, for machines without the toolkit."""
        return self.root / "plugins_trt/compat"


def find_sources() -> Sources:
    """The checkout that this package lies in, or the sources inside the installed package.

    Raises:
        EngineError: where neither is there.
    """
    here = Path(__file__).resolve().parent
    for root in (here / "cpp", *here.parents[:4]):
        if (root / "plugins_trt/src/plugin.cpp").is_file() and (root / "kernels/src/arguments.cpp").is_file():
            return Sources(root)
    raise EngineError(f"the plugin's C++ sources are not beside {here}: install edgemamba again")

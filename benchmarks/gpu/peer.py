"""Builds mamba_ssm's ``selective_scan_fn``, the peer of the benchmarks here, for the GPU at hand and nothing else of it.

    pip download --no-deps --no-binary :all: --no-build-isolation mamba-ssm     # where there is a network
    python benchmarks/gpu/peer.py mamba_ssm-2.3.2.post1.tar.gz build/peer       # minutes, with nvcc and PyTorch
    PYTHONPATH=build/peer benchmarks/gpu/run.sh

Its ``csrc/selective_scan`` is compiled with its own flags; the package's ``__init__``, which imports what the scan does not need, is
left with the version alone. Nothing of it is kept in this repository.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

# As its setup.py has them, without the debugging information.
NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    *(f"-U__CUDA_NO_{kind}_{what}__" for kind in ("HALF", "BFLOAT16") for what in ("OPERATORS", "CONVERSIONS")),
    *(f"-U__CUDA_NO_BFLOAT162_{what}__" for what in ("OPERATORS", "CONVERSIONS")),
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
]


def unpack(sdist: Path, folder: Path) -> Path:
    """The Python side of the scan into ``folder``; returns the folder of its C++ and CUDA sources."""
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        (root,) = (path for path in Path(scratch).iterdir() if path.is_dir())
        for name, source in (("mamba_ssm", root / "mamba_ssm"), ("csrc", root / "csrc" / "selective_scan")):
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(source, folder / name)
    init = folder / "mamba_ssm" / "__init__.py"
    version = re.search(r'^__version__ = ".*"$', init.read_text(), re.MULTILINE)
    init.write_text(f"{version[0] if version else '__version__ = None'}\n")
    return folder / "csrc"


def compile_scan(sources: Path, folder: Path) -> None:
    """``selective_scan_cuda`` into ``folder``, for the compute capability of the GPU at hand."""
    import torch
    from torch.utils import cpp_extension

    major, minor = torch.cuda.get_device_capability()
    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    cpp_extension.load(
        "selective_scan_cuda",
        sorted(str(path) for path in sources.iterdir() if path.suffix in (".cpp", ".cu")),
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=NVCC_FLAGS,
        build_directory=str(folder),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unpack-only", action="store_true", help="compile nothing")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    sources = unpack(options.sdist, options.folder)
    if not options.unpack_only:
        compile_scan(sources, options.folder)
        sys.path.insert(0, str(options.folder))
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        print(f"{selective_scan_fn.__name__} of {options.sdist.name} is in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

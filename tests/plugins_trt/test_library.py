"""What the built libraries export and need, and how they register themselves or refuse to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugins_trt.wheels import DISPATCH, dispatch_library

from edgemamba.plugins_trt import BuiltPlugin
from edgemamba.runtime import trt_plugin

# What every Linux has. No TensorRT, no CUDA: those are found at run time.
ALLOWED = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libdl.so.2", "libpthread.so.0"}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}  # thread-local storage


def readelf(option: str, library: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf (binutils) here")
    return subprocess.run(["readelf", "-W", option, library], capture_output=True, text=True, check=True).stdout


def needed(library: Path) -> set[str]:
    lines = [line for line in readelf("--dynamic", library).splitlines() if "(NEEDED)" in line]
    return {line.split("[")[1].rstrip("]") for line in lines}


def exported(library: Path) -> set[str]:
    rows = [line.split() for line in readelf("--dyn-syms", library).splitlines()]
    return {row[7] for row in rows if len(row) > 7 and row[4] in ("GLOBAL", "WEAK") and row[6] not in ("UND", "ABS")}


def test_the_plugin_needs_no_tensorrt_and_no_cuda(plugin: BuiltPlugin) -> None:
    assert needed(plugin.plugin) <= ALLOWED | LOADERS
    assert needed(plugin.autoload) <= ALLOWED | LOADERS


def test_exports_are_tensorrts_entry_points_and_ours(plugin: BuiltPlugin) -> None:
    assert exported(plugin.plugin) == {"getCreators", "setLoggerFinder", "em_trt_build_info", "em_trt_last_error"}
    # Its constructor is all there is to call; typeinfo and the like must not leave either.
    assert exported(plugin.autoload) == set()


def test_small_enough_to_embed_in_an_engine(plugin: BuiltPlugin) -> None:
    assert plugin.plugin.stat().st_size < 4_000_000


def test_build_info_and_last_error(plugin: BuiltPlugin) -> None:
    version = ".".join(map(str, plugin.headers.version))
    assert (
        trt_plugin.build_info(plugin.plugin) == f"edgemamba SelectiveScan 1, TensorRT headers {version}" == plugin.info
    )
    assert trt_plugin.last_error(plugin.plugin) == ""


@pytest.mark.parametrize(
    ("version", "name"), [(100300, "libnvinfer"), (110400, "libnvinfer"), (10701, "libtensorrt_rtx")]
)
def test_serves_majors_10_and_11_of_a_stand_in(
    version: int, name: str, plugin: BuiltPlugin, compiler: list[str], tmp_path: Path
) -> None:
    assert ask_stand_in(compiler, tmp_path, version, name, plugin.plugin) == (1, "")


@pytest.mark.parametrize(
    ("version", "name"),
    [(120000, "libnvinfer"), (90000, "libnvinfer"), (8601, "libnvinfer"), (20000, "libtensorrt_rtx")],
)
def test_refuses_other_majors_of_a_stand_in(
    version: int, name: str, plugin: BuiltPlugin, compiler: list[str], tmp_path: Path
) -> None:
    """No creators, one line that says why, and no call of an interface that may have changed."""
    found, said = ask_stand_in(compiler, tmp_path, version, name, plugin.plugin)
    assert found == 0
    assert said == (
        "edgemamba SelectiveScan: this plugin serves TensorRT 10 to 11 (and TensorRT-RTX 1); it was loaded by version "
        f"code {version}: build it for that one with `python -m edgemamba.plugins_trt build`\n"
    )


def ask_stand_in(compiler: list[str], folder: Path, version: int, name: str, plugin: Path) -> tuple[int, str]:
    """How many creators the plugin offers a library that calls itself ``version``, and what it printed."""
    library = folder / f"{name}.so.{version // 10000}"
    source = Path(__file__).with_name("fake_host.cpp")
    command = [
        *compiler,
        "-std=c++17",
        "-shared",
        "-fPIC",
        f"-DVERSION={version}",
        str(source),
        "-o",
        str(library),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    ask = f"import ctypes; print(ctypes.CDLL({str(library)!r}).ask({str(plugin).encode()!r}))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr


# What Polygraphy, trtexec --staticPlugins and ctypes do: load the library, then look into the registry. The registry is
# asked through its virtual table, because the small runtimes have no Python module (slots: plugins_trt/src/registry.h).
AUTOLOAD = """
import ctypes, sys
library, autoload, slot, before = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "before"
if before:
    tensorrt = ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
plugin = ctypes.CDLL(autoload)
if not before:
    tensorrt = ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
tensorrt.getPluginRegistry.restype = ctypes.c_void_p
registry = tensorrt.getPluginRegistry()
table = ctypes.cast(registry, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
text = [ctypes.c_char_p] * 3
get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, *text)(table[slot])
print(bool(get(registry, b"SelectiveScan", b"1", b"edgemamba")))
again = ctypes.CDLL(autoload)
"""


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("major", DISPATCH)
def test_autoload_registers_in_the_real_registry(major: int, order: str, plugin: BuiltPlugin) -> None:
    """With TensorRT loaded before it, and after it (then it is found on the library path)."""
    library, slot = dispatch_library(major), {10: "14", 11: "10"}[major]
    command = [sys.executable, "-c", AUTOLOAD, str(library), str(plugin.autoload), slot, order]
    environment = {"LD_LIBRARY_PATH": str(library.parent)} if order == "after" else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_autoload_without_tensorrt_says_so(plugin: BuiltPlugin, tmp_path: Path) -> None:
    """One line, and the process goes on."""
    load = f"import ctypes; ctypes.CDLL({str(plugin.autoload)!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=False, env={}, timeout=60)
    assert done.returncode == 0
    if "LD_LIBRARY_PATH" in done.stderr:  # a machine with TensorRT on its library path registers instead
        assert done.stderr.startswith(
            "edgemamba: the TensorRT plugin is not registered: no TensorRT library is loaded, "
        )
    alone = tmp_path / plugin.autoload.name
    shutil.copy(plugin.autoload, alone)
    library = dispatch_library(10)
    load = f"import ctypes; ctypes.CDLL({str(library)!r}, ctypes.RTLD_GLOBAL); ctypes.CDLL({str(alone)!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=False, env={}, timeout=60)
    assert done.returncode == 0
    assert "edgemamba: the TensorRT plugin is not registered: TensorRT's registry would not load " in done.stderr

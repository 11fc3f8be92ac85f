"""Finding headers and compilers, building, and what is said where something is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugins_trt.wheels import dispatch_library, headers_folder

from edgemamba.plugins_trt import BuiltPlugin, Headers, build, find_headers
from edgemamba.plugins_trt.__main__ import main
from edgemamba.plugins_trt.building import find_compiler, run_compiler
from edgemamba.plugins_trt.headers import installed, places, read_version
from edgemamba.plugins_trt.sources import Sources, find_sources
from edgemamba.runtime import trt_plugin
from edgemamba.runtime.errors import EngineError

ROOT = Path(__file__).parents[2]

DIRECT = "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n"
INDIRECT = "#define TRT_MAJOR_ENTERPRISE 11\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n" + "".join(
    f"#define TRT_{part}_ENTERPRISE {number}\n#define NV_TENSORRT_{part} TRT_{part}_ENTERPRISE\n"
    for part, number in (("MINOR", 4), ("PATCH", 1))
)


def write_headers(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").write_text("")
    (folder / "NvInferVersion.h").write_text(version)
    return folder


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No headers in any usual place."""
    monkeypatch.setattr("edgemamba.plugins_trt.headers.places", lambda: iter([tmp_path / "absent"]))
    return tmp_path


@pytest.mark.parametrize(("text", "version"), [(DIRECT, (10, 3, 0)), (INDIRECT, (11, 4, 1))])
def test_versions_of_both_spellings(text: str, version: tuple[int, int, int], tmp_path: Path) -> None:
    assert read_version(write_headers(tmp_path / "include", text)) == version


def test_a_tar_archives_root_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_headers(tmp_path / "TensorRT-10.3.0.26/include", DIRECT)
    monkeypatch.setenv("TensorRT_ROOT", str(folder.parent))
    assert installed()[0] == Headers(folder, (10, 3, 0)) == find_headers()
    assert find_headers(folder.parent) == find_headers(folder)


def test_apt_and_jetpack_places_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    looked_at = {str(place) for place in places()}
    assert {"/usr/include/aarch64-linux-gnu", "/usr/include", "/usr/local/tensorrt/include"} <= looked_at


def test_headers_that_the_plugin_does_not_serve(nothing_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_headers(nothing_installed / "old", DIRECT.replace("10", "8"))
    with pytest.raises(
        EngineError, match=r"TensorRT 8\.3\.0 in .* is not served by the plugin, which needs TensorRT 10 or 11"
    ):
        find_headers(old)
    monkeypatch.setattr("edgemamba.plugins_trt.headers.places", lambda: iter([old]))
    with pytest.raises(EngineError, match=r"^the only headers are of TensorRT 8\.3\.0"):
        find_headers()
    with pytest.raises(EngineError, match=r"has no NvInferRuntime.h"):
        find_headers(nothing_installed)
    strange = write_headers(nothing_installed / "strange", "")
    with pytest.raises(EngineError, match=r"does not say NV_TENSORRT_MAJOR"):
        find_headers(strange)


def test_the_command_line_says_what_is_missing(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (
            ["build", "--output", str(nothing_installed)],
            "TensorRT's headers (NvInferRuntime.h) are not on this machine: ",
        ),
        (["where", "--major", "12"], "the TensorRT plugin serves TensorRT 10, 11 and TensorRT-RTX, not TensorRT 12"),
        (["build", "--nonsense"], "No such option: --nonsense"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        said = capsys.readouterr().err
        assert stopped.value.code == 2
        assert said.startswith(f"edgemamba: error: {message}")
        assert said.count("\n") == 1
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(EngineError, match=r"^\$CXX names no-such-compiler, which is not on the path"):
        find_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(nothing_installed))
    with pytest.raises(EngineError, match=r"^no C\+\+ compiler on the path: apt install g\+\+"):
        find_compiler()


def test_a_compiler_that_fails_is_quoted(compiler: list[str], tmp_path: Path) -> None:
    source = tmp_path / "bad.cpp"
    source.write_text("int main() { return nothing; }\n")
    with pytest.raises(EngineError, match=r"could not build the plugin: .*error: .*nothing"):
        run_compiler([*compiler, str(source), "-o", str(tmp_path / "bad")])


def test_a_folder_that_cannot_be_written(headers: Headers, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EngineError, match=r"no folder to write the plugin to .*: pass --output DIR"):
        build(headers.folder, blocked / "below")


def test_what_is_built_is_found(plugin: BuiltPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the runtime, for its own major and, where there is no other, for the other one."""
    monkeypatch.setenv(trt_plugin.ENVIRONMENT, str(plugin.plugin.parent))
    assert trt_plugin.plugin_library(plugin.headers.major) == plugin.plugin
    assert trt_plugin.autoload_library(plugin.headers.major) == plugin.autoload
    monkeypatch.setattr(trt_plugin, "plugin_folders", lambda: [plugin.plugin.parent])
    assert {trt_plugin.plugin_library(major) for major in trt_plugin.MAJORS} == {plugin.plugin}
    monkeypatch.setattr(trt_plugin, "plugin_folders", lambda: [tmp_path])
    with pytest.raises(EngineError, match=r"is not built on this machine: python -m edgemamba.plugins_trt build$"):
        trt_plugin.plugin_library(10)
    (tmp_path / "libedgemamba_trt10.so").write_text("no library")
    with pytest.raises(EngineError, match=r"is not a usable TensorRT plugin: .*: build it again"):
        trt_plugin.build_info(trt_plugin.plugin_library(10))


def test_doctor_and_where(
    plugin: BuiltPlugin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(trt_plugin.ENVIRONMENT, str(plugin.plugin.parent))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--json"])
    assert stopped.value.code == 0
    findings = json.loads(capsys.readouterr().out)
    assert f"{plugin.plugin}: {plugin.info}" in findings["plugins"]
    with pytest.raises(SystemExit):
        main(["where", "--major", str(plugin.headers.major)])
    assert capsys.readouterr().out == f"{plugin.plugin}\n"


def test_builds_without_warnings_with_every_headers_here(tmp_path: Path, compiler: list[str]) -> None:
    """Beside 10.14, which every other test uses: whatever this machine has."""
    found = [headers for headers in installed() if headers.major in trt_plugin.MAJORS]
    if not found:
        pytest.skip("no TensorRT headers are installed here")
    for headers in found:
        assert build(headers.folder, tmp_path, warnings=True).headers == headers


def test_builds_with_the_stand_in_for_cudas_header(
    headers: Headers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without a CUDA toolkit."""
    monkeypatch.setattr("edgemamba.plugins_trt.building.cuda_include", lambda: None)
    assert build(headers.folder, tmp_path, warnings=True).plugin.is_file()


def test_sources_are_complete() -> None:
    sources = find_sources()
    assert sources.root == ROOT
    for path in (
        *sources.plugin,
        *sources.autoload,
        *sources.harness,
        *sources.includes,
        sources.exports,
        sources.compat,
    ):
        assert path.exists(), path


def test_the_wheels_copy_is_enough_to_build(headers: Headers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CMake lays beside the package in a wheel: the plugin is built from it as from a checkout."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake here")
    prefix = tmp_path / "edgemamba/runtime"
    for command in (
        ["cmake", "-S", ROOT, "-B", tmp_path / "build", "-DSKBUILD=ON"],
        ["cmake", "--install", tmp_path / "build", "--prefix", prefix, "--component", "plugin_sources"],
    ):
        subprocess.run(command, capture_output=True, check=True)
    copy = Sources(tmp_path / "edgemamba/plugins_trt/cpp")
    assert [path.name for path in copy.plugin] == [path.name for path in find_sources().plugin]
    monkeypatch.setattr("edgemamba.plugins_trt.building.find_sources", lambda: copy)
    assert build(headers.folder, tmp_path / "built").plugin.is_file()


@pytest.mark.slow
def test_cmake_builds_the_same(tmp_path: Path, compiler: list[str]) -> None:
    """The packagers' way, with the harness as its test."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake here")
    options = ["-DEDGEMAMBA_TENSORRT=ON", "-DEDGEMAMBA_WERROR=ON", "-DEDGEMAMBA_BUILD_TESTS=ON"]
    for command in (
        ["cmake", "-S", ROOT, "-B", tmp_path, *options, f"-DEDGEMAMBA_TENSORRT_INCLUDE={headers_folder()}"],
        ["cmake", "--build", tmp_path, "--target", "edgemamba_trt", "edgemamba_trt_autoload", "edgemamba_trt_harness"],
        ["ctest", "--test-dir", tmp_path, "-R", "^trt_", "--output-on-failure", "--no-tests=error"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_aarch64_under_qemu(tmp_path: Path, compiler: list[str]) -> None:
    """The plugin of a Jetson, in the registry of the real TensorRT 11.4 for its processor."""
    for tool in ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here (apt install g++-aarch64-linux-gnu qemu-user)")
    library = dispatch_library(11, "manylinux_2_35_aarch64")
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DEDGEMAMBA_WERROR=ON"]
    options += ["-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DEDGEMAMBA_TENSORRT=ON"]
    built = tmp_path / "plugins_trt"
    harness = [built / "edgemamba_trt_harness", built / "libedgemamba_trt10.so", "--tensorrt", library]
    for command in (
        ["cmake", "-S", ROOT, "-B", tmp_path, *options, f"-DEDGEMAMBA_TENSORRT_INCLUDE={headers_folder()}"],
        ["cmake", "--build", tmp_path, "--target", "edgemamba_trt", "edgemamba_trt_harness"],
        ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", *harness],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert ", 0 failed, " in done.stdout


def test_the_module_runs() -> None:
    command = [sys.executable, "-m", "edgemamba.plugins_trt", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "build" in done.stdout

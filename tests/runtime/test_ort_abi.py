"""The hand-written view of ONNX Runtime's C ABI against the official header, where one is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ROOT / "kernels/ort/onnxruntime_abi.h"
PLACES = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include", "/usr/local/include")


def official_header() -> Path | None:
    """onnxruntime_c_api.h: of $ORT_INCLUDE, a system package, or an unpacked release."""
    folders = [os.environ.get("ORT_INCLUDE", ""), *PLACES]
    for folder in filter(None, folders):
        for found in sorted(Path(folder).glob("**/onnxruntime_c_api.h")) if Path(folder).is_dir() else []:
            return found
    return None


def slots() -> dict[str, int]:
    body = re.search(r"enum Slot \{(.*?)\};", OURS.read_text(), re.DOTALL)
    assert body
    return {name: int(number) for name, number in re.findall(r"k(\w+) = (\d+)", body[1])}


def members() -> list[str]:
    """The members of our CustomOp, in order."""
    body = re.search(r"struct CustomOp \{(.*?)\n\};", OURS.read_text(), re.DOTALL)
    assert body
    return ["version", *re.findall(r"\(\*(\w+)\)", body[1])]


def test_slots_are_listed_once_and_in_order() -> None:
    numbers = list(slots().values())
    assert len(numbers) > 20
    assert numbers == sorted(set(numbers))


def test_every_function_calls_the_slot_of_its_name() -> None:
    called = dict(re.findall(r"\b([A-Z]\w+)\([^{}]*\) const \{[^}]*?>\(\s*k(\w+)", OURS.read_text()))
    assert called == {name: name for name in slots()}


def test_against_the_official_header(tmp_path: Path) -> None:
    header = official_header()
    if header is None:
        pytest.skip(
            "no onnxruntime_c_api.h here (no Python package ships it); point ORT_INCLUDE at a release's include/"
        )
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    checks = [f"SLOT({name}, {number})" for name, number in slots().items()]
    checks += [
        f"static_assert(offsetof(OrtCustomOp, {name}) == offsetof(edgemamba::ort::CustomOp, {name}));"
        for name in members()
    ]
    source = tmp_path / "check.cpp"
    source.write_text(
        f'#include <cstddef>\n#include "{header}"\n#include "{OURS}"\n'
        "#define SLOT(name, number) static_assert(offsetof(OrtApi, name) == number * sizeof(void*), #name);\n"
        'static_assert(ORT_INVALID_ARGUMENT == edgemamba::ort::kInvalidArgument, "");\n'
        'static_assert(ORT_FAIL == edgemamba::ort::kFail, "");\n'
        'static_assert(INPUT_OUTPUT_REQUIRED == edgemamba::ort::kRequired, "");\n'
        'static_assert(OrtMemTypeDefault == edgemamba::ort::kMemoryDefault, "");\n' + "\n".join(checks) + "\n"
    )
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", str(source)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr

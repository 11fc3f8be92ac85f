"""The `edgemamba` command itself: how verbs are found, what is said where one cannot be, and how they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from runtime.without_packages import without_packages

from edgemamba.runtime import __version__
from edgemamba.runtime.cli import VERBS, main

# Third-party packages that only some verbs need, as if they were not installed.
WITHOUT_EXTRAS = f"""
{without_packages("torch", "timm", "lightning", "onnx", "onnxscript", "onnx_ir", "nilearn")}
from edgemamba.runtime import cli
cli.main(sys.argv[1:])
"""
# A verb whose import takes long, and swallows the interrupt as half-imported libraries do.
SLOW = """
import sys, time, types
module = types.ModuleType("slow_verb")
def __getattr__(name):
    print("importing", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        pass
    raise RecursionError("half imported")
module.__getattr__ = __getattr__
sys.modules["slow_verb"] = module
from edgemamba.runtime import cli
cli.VERBS["slow"] = cli.Verb("slow_verb:slow", "")
cli.main(["slow"])
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"edgemamba {__version__}\n"


@pytest.mark.parametrize(
    ("verb", "hint"), [("exprot", "did you mean 'export'?"), ("xyz", "choose one of: demo, models")]
)
def test_an_unknown_verb(verb: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb])
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "extra"),
    [("demo", "demo"), ("models", "train"), ("train", "train"), ("export", "export"), ("verify", "export")],
)
def test_a_missing_extra_is_named_once_and_for_all(verb: str, extra: str) -> None:
    """The extra that brings everything the verb needs, not one package after the other."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS, verb], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgemamba: error: ")
    assert line.endswith(f'is needed for `edgemamba {verb}` and is not installed: pip install "edgemamba[{extra}]"')


def test_a_reader_that_has_enough_is_no_failure() -> None:
    """`edgemamba models | head -1`: the reading end is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "edgemamba", "doctor"]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_importing_ends_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "edgemamba: error: interrupted\n")
    assert time.monotonic() - start < 10

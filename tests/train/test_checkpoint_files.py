"""Files that are no checkpoints, or more than that: nothing in them is run, and what they need to be opened is made of air."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import functools
import io
import operator
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from edgemamba.runtime.errors import CheckpointError
from edgemamba.train import create_model, load_checkpoint
from edgemamba.train.checkpoint_files import STAND_INS, Opaque, read_file
from edgemamba.train.models.backbone import Backbone


def vim() -> Backbone:
    return create_model("vim_tiny", img_size=48, embed_dim=16, depth=1, num_classes=5)


# ---- objects of training runs


@contextmanager
def module(name: str) -> Iterator[types.ModuleType]:
    """A module by that name, for as long as something of it is pickled."""
    parts = name.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    made = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    sys.modules.update(made)
    try:
        yield sys.modules[name]
    finally:
        for name in made:
            del sys.modules[name]


def save_with_configuration(state: dict[str, Any], path: Path) -> None:
    """What VMamba's training writes: a yacs node, which is a dictionary with attributes and a will of its own."""
    with module("yacs.config") as yacs:

        class CfgNode(dict):  # type: ignore[type-arg]
            def __init__(self, items: dict[str, Any]) -> None:
                super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in items.items()})
                self.__dict__["__immutable__"] = False

            def __setattr__(self, name: str, value: Any) -> None:
                raise AttributeError(name)

        CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
        yacs.CfgNode = CfgNode  # type: ignore[attr-defined]
        config = CfgNode({"MODEL": {"TYPE": "vssm", "VSSM": {"DEPTHS": [2, 2, 5, 2]}}, "AMP": True})
        torch.save({"model": state, "max_accuracy": np.float64(82.5), "epoch": 299, "config": config}, path)


def save_with_history(state: dict[str, Any], path: Path) -> None:
    """What mmengine's runner writes: buffers of logged figures, with the names of their own methods."""
    with module("mmengine.logging.history_buffer") as logging:

        class HistoryBuffer:
            def __init__(self) -> None:
                self._log_history = np.arange(3.0)
                self.statistics_methods = {"mean": HistoryBuffer.mean}

            def mean(self) -> float:
                return float(self._log_history.mean())

        HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
        HistoryBuffer.mean.__module__ = HistoryBuffer.__module__
        HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
        logging.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
        hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "resumed_keys": {}}
        torch.save({"meta": {"seed": 1}, "state_dict": state, "message_hub": hub}, path)


def save_with_arguments(state: dict[str, Any], path: Path) -> None:
    arguments = argparse.Namespace(model="vim", output_dir=Path("/data"), nested=argparse.Namespace(lr=1e-3))
    torch.save({"model": state, "args": arguments, "random": np.random.default_rng(0).bytes(3)}, path)


@pytest.mark.parametrize("save", [save_with_configuration, save_with_history, save_with_arguments])
def test_objects_beside_the_weights_are_stood_in_for(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    source, target = vim(), vim()
    save(source.state_dict(), tmp_path / "w.pth")
    report = load_checkpoint(target, tmp_path / "w.pth")
    assert report.matched == len(source.state_dict())
    assert torch.equal(target.head.weight, source.head.weight)
    assert not {"yacs", "mmengine"} & sys.modules.keys()


def test_stand_ins_are_nothing(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=1), "w": torch.zeros(1), "history": np.arange(3)}, tmp_path / "w.pth")
    before = set(torch.serialization.get_safe_globals())
    content = read_file(tmp_path / "w.pth")
    assert (type(content["args"]), type(content["history"])) == (Opaque, Opaque)
    assert vars(content["args"]) == {}
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_stand_in_is_no_weight(tmp_path: Path) -> None:
    state = vim().state_dict() | {"head.bias": np.zeros(5)}
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds no state dictionary that can be read; at model"):
        load_checkpoint(vim(), tmp_path / "w.pth")


# ---- hostile files


class Hostile:
    """Runs a command when it is unpickled by a reader that lets it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


class Call:
    """Calls a function with arguments when it is unpickled by a reader that lets it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _calls(witness: Path) -> dict[str, Any]:
    """Ways to write the witness; among them through names that the reader has stand-ins for."""
    code = f"open({str(witness)!r}, 'w')"
    inner = pickle.dumps(Hostile(witness))
    return {
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "import": Call(builtins.__import__, "antigravity"),
        "open": Call(open, str(witness), "w"),
        "popen": Call(subprocess.Popen, ["touch", str(witness)]),
        "partial": Call(functools.partial(os.system, f"touch {witness}")),
        "attribute": Call(operator.attrgetter, "system"),
        "pickle in pickle": Call(pickle.loads, inner),
        "numpy pickle in pickle": Call(np.load, io.BytesIO(inner)),
        "numpy scalar of objects": Call(np._core.multiarray.scalar, np.dtype("O"), inner),  # type: ignore[attr-defined]
        "stand-in as a function": Call(argparse.Namespace, Hostile(witness)),
        "torch.load": Call(torch.load, io.BytesIO(inner)),
        "hub": Call(torch.hub.load, str(witness.parent), "model"),
    }


@pytest.mark.parametrize("way", sorted(_calls(Path("witness"))))
def test_no_way_to_run_code_is_left_open(way: str, tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "w.pth"
    torch.save({"model": vim().state_dict(), "extra": _calls(witness)[way]}, path)
    with contextlib.suppress(CheckpointError):  # or the call was stood in for
        load_checkpoint(vim(), path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "program",
    [
        # getattr(Namespace, "__init__"), then a call of the result
        b"\x80\x02cbuiltins\ngetattr\ncargparse\nNamespace\nX\x08\x00\x00\x00__init__\x86R)R.",
        # Namespace(), its class's attributes set
        b"\x80\x02cargparse\nNamespace\n}X\x08\x00\x00\x00__call__K\x01sb.",
        # Namespace() with items put into it
        b"\x80\x02cargparse\nNamespace\n)\x81X\x01\x00\x00\x00aK\x01s.",
        # CfgNode() whose methods are overwritten with numbers
        b"\x80\x02cyacs.config\nCfgNode\n)\x81}(X\x05\x00\x00\x00itemsK\x01X\x03\x00\x00\x00getK\x01X\x04\x00\x00\x00keysK\x01ub.",
        # a dictionary with such a CfgNode as its weights
        b"\x80\x02}X\x05\x00\x00\x00modelcyacs.config\nCfgNode\n)\x81}(X\x05\x00\x00\x00itemsK\x01X\x03\x00\x00\x00getK\x01ubs.",
    ],
)
def test_stand_ins_cannot_be_bent(program: bytes, tmp_path: Path) -> None:
    pieces = {name: _with_program(tmp_path / name, program) for name in ("zip.pth", "legacy.pth")}
    for path in pieces.values():
        with pytest.raises(CheckpointError, match=path.name) as caught:
            load_checkpoint(vim(), path)
        assert "\n" not in str(caught.value)


def _with_program(path: Path, program: bytes) -> Path:
    """A file as torch.save writes it, with that pickle in it."""
    if path.stem == "legacy":
        path.write_bytes(program)
        return path
    torch.save({}, path)
    with zipfile.ZipFile(path) as source:
        entries = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in entries.items():
            target.writestr(name, program if name.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize("name", sorted(STAND_INS))
def test_no_stand_in_is_the_thing_itself(name: str) -> None:
    assert STAND_INS[name].__qualname__ in ("Opaque", "OrderedDict")


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "w.pth"
    content = {"model": vim().state_dict(), "args": Hostile(witness)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"w\.pth is refused: it asks to run or build posix\.system") as caught:
        load_checkpoint(vim(), path)
    assert "\n" not in str(caught.value)
    assert not witness.exists()
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        load_checkpoint(vim(), path)
    assert not witness.exists()


class _Pickled(nn.Module):
    """Stands for a training script's own class: a whole pickled model, or a configuration object."""


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(_Pickled(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"_Pickled.*save its state_dict\(\) alone"):
        load_checkpoint(vim(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a checkpoint", b"PK\x03\x04broken", b"\x80\x02}q\x00."])
def test_files_that_are_no_checkpoints_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_checkpoint(vim(), path)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_or_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(vim(), tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(vim(), tmp_path)
    for content, text in (
        ([1, 2], "holds a list"),
        ({}, "nothing"),
        ({"epoch": 3}, r"epoch \(int\)"),
        ({"model": {"a": torch.zeros(1), "b": "text"}}, r"at model: a \(Tensor\), b \(str\)"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=text):
            load_checkpoint(vim(), tmp_path / "w.pth")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / f"w{data.draw(st.sampled_from(['.pth', '.safetensors']))}"
    state = {"weight": torch.arange(4.0)}
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(vim(), path)

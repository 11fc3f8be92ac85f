"""`edgemamba export` and `edgemamba verify` as a user runs them: output, exit codes, bad input."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import onnx
import pytest
import torch

from edgemamba.export import export
from edgemamba.runtime.bundle import Bundle, read_manifest
from edgemamba.runtime.cli import main
from edgemamba.runtime.errors import ExportError
from edgemamba.train import create_model
from edgemamba.train.checkpoint import training_metadata

pytest.importorskip("onnxruntime")

SETTINGS = ["--set", "embed_dim=32", "--set", "depth=2", "--image-size", "32x48"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint laid out as upstream's: weights under ``model``, a head of 5 classes."""
    torch.manual_seed(0)
    model = create_model("vim_tiny", num_classes=5, embed_dim=32, depth=2, img_size=(32, 48))
    path = tmp_path_factory.mktemp("checkpoints") / "official.pth"
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that `edgemamba train` could have written."""
    torch.manual_seed(0)
    model = create_model("medmamba_t", num_classes=3, dims=(16, 32), depths=(1, 1), img_size=32)
    path = tmp_path_factory.mktemp("checkpoints") / "last.ckpt"
    metadata = training_metadata(model, ["axial", "coronal", "sagittal"])
    torch.save({"edgemamba": metadata, "state_dict": model.state_dict()}, path)
    return path


def fails(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect that exit code, and return the one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == status
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("edgemamba: error:")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def succeeds(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code


def test_official_checkpoint_to_verified_bundle(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n\ne\n")
    out = tmp_path / "bundle"
    arguments = ["export", str(official), "--model", "vim_tiny", "-o", str(out), "--class-names", str(names), *SETTINGS]
    succeeds(arguments)
    error = capsys.readouterr().err
    assert f"edgemamba verify {out}" in error.replace("\n", "")
    assert "2 of them SelectiveScan" in error
    manifest = Bundle.load(out).manifest
    assert manifest.outputs[0].shape == ("batch", 5)  # read from the checkpoint
    assert manifest.class_names == ("a", "b", "c", "d", "e")
    assert manifest.source is not None
    assert manifest.source.file == "official.pth"

    succeeds(["verify", str(out), "--samples", "2", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert [backend["backend"] for backend in report["backends"]] == ["ort-cpu", "ort-function"]
    succeeds(["verify", str(out), "--samples", "2", "--checkpoint", str(official), "--backend", "ort-function"])
    assert "passed" in capsys.readouterr().out


def test_training_checkpoint_knows_its_model_and_classes(trained: Path, tmp_path: Path) -> None:
    succeeds(
        ["export", str(trained), "-o", str(tmp_path / "b"), "--precision", "fp16", "--dynamic", "batch,height,width"]
    )
    manifest = Bundle.load(tmp_path / "b").manifest
    assert manifest.model.name == "medmamba_t"
    assert manifest.class_names == ("axial", "coronal", "sagittal")
    assert manifest.precision == "fp16"
    assert manifest.input.shape == ("batch", "height", "width", 3)


def test_random_weights_say_so(tmp_path: Path) -> None:
    arguments = ["export", "--model", "vim_tiny", "--random-weights", "--no-weights", *SETTINGS]
    succeeds([*arguments, "-o", str(tmp_path / "a")])
    succeeds([*arguments, "-o", str(tmp_path / "b")])
    first, second = (Bundle.load(tmp_path / name).manifest for name in "ab")
    assert first.source is not None
    assert first.source.file.startswith("random weights")
    assert (first.source, first.files) == (second.source, second.files)
    assert set(first.files) == {"model.onnx"}


def test_past_the_tolerance_is_exit_code_1_and_names_the_layer(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    succeeds(["export", str(trained), "-o", str(out)])
    graph = onnx.load(out / "model.onnx")
    weight = next(entry for entry in graph.graph.initializer if entry.name == "patch_embed.proj.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[::2] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, out / "model.onnx")
    Bundle(out, read_manifest(out)).with_files("model.onnx")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(out), "--samples", "2"])
    assert caught.value.code == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "failed" in printed
    assert "patch_embed.proj" in printed
    # And a tolerance that forgives it is exit code 0.
    succeeds(["verify", str(out), "--samples", "2", "--atol", "1e9", "--rtol", "1e9"])


class Evil:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("pwned"),))


def test_checkpoints_that_cannot_be_used(
    official: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil()}, "evil2.pth")
    Path("empty.pth").touch()
    Path("text.pth").write_text("hello")
    cases = {
        ("missing.pth", "--model", "vim_tiny"): "missing.pth is not a file",
        ("evil.pth", "--model", "vim_tiny"): "evil.pth",
        ("evil2.pth", "--model", "vim_tiny"): "evil2.pth is refused",
        ("empty.pth", "--model", "vim_tiny"): "0 bytes",
        ("text.pth", "--model", "vim_tiny"): "text.pth",
        (str(official),): "add --model",
        (str(official), "--model", "vim_tiny"): "does not fit vim_tiny",
        (str(official), "--model", "medmamba_t"): "does not fit medmamba_t",
        (str(official), "--model", "vim_tinny"): "vim_tiny",
        (str(official), "--model", "vim_tiny", *SETTINGS, "--num-classes", "6"): "5 classes in the file",
        (str(trained), "--model", "vim_tiny"): "is of medmamba_t, not vim_tiny",
        (str(trained), "--num-classes", "4"): "states its own configuration",
        (): "name a checkpoint",
        ("--random-weights",): "--model NAME",
    }
    for arguments, message in cases.items():
        assert message in fails(["export", *arguments, "-o", "out"], 2, capsys)
    assert not Path("pwned").exists()
    assert not Path("out").exists()


def test_options_that_cannot_be_used(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["export", str(official), "--model", "vim_tiny", *SETTINGS]
    names = tmp_path / "names.json"
    names.write_text('["only one"]')
    cases = {
        ("--image-size", "big"): "--image-size big",
        ("--image-size", "100000"): "--image-size 100000: models take up to",
        ("--precision", "int8"): "int8",
        ("--opset", "11"): "opset 11",
        ("--dynamic", "time"): "time",
        ("--dynamic", "height"): "tracing inferred a static shape of",
        ("--set", "depth"): "KEY=VALUE is needed",
        ("--set", "deepth=3"): "depth",
        ("--class-names", str(names)): "1 class names were given for 5",
        ("--class-names", str(tmp_path / "none.txt")): "none.txt",
    }
    for arguments, message in cases.items():
        assert message in fails([*base, *arguments, "-o", str(tmp_path / "out")], 2, capsys)
    assert not (tmp_path / "out").exists()
    assert "no bundle" in fails([*base, "-o", str(tmp_path), "--force"], 2, capsys)


def test_class_names_are_counted_before_the_model_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemamba.export.exporting.to_onnx", lambda *a: pytest.fail("the model was traced"))
    model = create_model("vim_tiny", num_classes=5, depth=1, embed_dim=32, img_size=32)
    with pytest.raises(ExportError, match="2 class names were given for 5 classes"):
        export(model, tmp_path / "out", class_names=("one", "two"))


def test_bundles_that_cannot_be_verified(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing is not a folder" in fails(["verify", str(tmp_path / "nothing")], 2, capsys)
    out = tmp_path / "b"
    succeeds(["export", str(trained), "-o", str(out), "--no-weights"])
    assert "holds a bundle already" in fails(["export", str(trained), "-o", str(out)], 2, capsys)
    assert "--checkpoint" in fails(["verify", str(out)], 2, capsys)
    assert "tensorflow" in fails(
        ["verify", str(out), "--checkpoint", str(trained), "--backend", "tensorflow"], 2, capsys
    )
    for arguments, message in (
        (("--atol", "0"), "--atol is 0"),
        (("--rtol", "-1"), "--rtol is -1"),
        (("--seed", "-1"), "--seed"),
    ):
        assert message in fails(["verify", str(out), "--checkpoint", str(trained), *arguments], 2, capsys)
    manifest = out / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"model.onnx":', '"../model.onnx":'))
    assert "outside" in fails(["verify", str(out)], 2, capsys)
    manifest.write_text(text)
    data = bytearray((out / "model.onnx").read_bytes())
    data[100] ^= 1
    (out / "model.onnx").write_bytes(data)
    assert "was changed" in fails(["verify", str(out)], 2, capsys)
    (out / "model.onnx").write_bytes(data[:3000])
    Bundle(out, read_manifest(out)).with_files("model.onnx")
    message = fails(["verify", str(out), "--checkpoint", str(trained), "--samples", "1"], 2, capsys)
    assert "model.onnx is not a readable ONNX model" in message


def test_a_configuration_that_no_model_has(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    succeeds(["export", str(trained), "-o", str(out)])
    card = read_manifest(out).model
    for key, value in (("dims", None), ("img_size", "large"), ("depths", {})):
        changed = card.model_copy(update={"config": {**card.config, key: value}})
        Bundle(out, read_manifest(out)).with_files(model=changed)
        fails(["verify", str(out), "--samples", "1"], 2, capsys)

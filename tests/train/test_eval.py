"""The verb `edgemamba eval`: the PyTorch model and its engine are judged alike, and refusals say what is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_toys import CLASSES, stripes, tiny

from edgemamba.export import export
from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.cli import main
from edgemamba.train import create_model
from edgemamba.train.checkpoint import read_training_checkpoint
from edgemamba.train.data import open_dataset
from edgemamba.train.evaluation.candidates import EngineCandidate, TorchCandidate, open_bundle, open_model
from edgemamba.train.evaluation.predicting import predict
from edgemamba.train.evaluation.running import Request, evaluate
from edgemamba.train.training import TrainingResult, train

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"dims": (16, 32), "depths": (1, 1), "d_state": 4, "img_size": 32}


@dataclass(frozen=True)
class Trained:
    """A run, its data set, and the bundle of its best checkpoint."""

    data: Path
    result: TrainingResult
    bundle: Path

    @property
    def checkpoint(self) -> Path:
        return self.result.best


def call(*arguments: str | Path | None) -> int:
    """The exit status of `edgemamba eval ...` in this process."""
    with pytest.raises(SystemExit) as stop:
        main(["eval", *(str(argument) for argument in arguments)])
    return int(stop.value.code or 0)


def write_doubtful(path: Path, names: tuple[str, ...], *, bits: int = 8, order: tuple[int, ...] = ()) -> Path:
    """Stripes of which every sixth has another label than it should, so that no figure is perfect.

    ``order``: position of each class in the archive's own numbering.
    """
    arrays: dict[str, Any] = {}
    for seed, (part, count) in enumerate({"train": 36, "val": 31, "test": 40}.items()):
        images, labels = stripes(3 * count, seed)
        images, labels = (array[labels < len(names)][:count] for array in (images, labels))
        labels = np.where(np.arange(len(labels)) % 6 == 5, (labels + 1) % len(names), labels)
        arrays[f"{part}_images"] = images if bits == 8 else images.astype(np.uint16) * 257
        arrays[f"{part}_labels"] = np.array(order or range(len(names)))[labels]
    own = [""] * len(names)
    for place, name in zip(order or range(len(names)), names, strict=True):
        own[place] = name
    np.savez(path, class_names=np.array(own), **arrays)
    return path


def make(folder: Path, names: tuple[str, ...], *, dynamic: tuple[Any, ...], **options: Any) -> Trained:
    data = write_doubtful(folder / "doubtful.npz", names, **options)
    settings = tiny(data, folder / "run", epochs=4, lr=5e-3, ema=False, augmentation={"enabled": False}, seed=1)
    result = train(settings)
    assert result is not None
    model, class_names, _ = read_training_checkpoint(result.best)
    export(model, folder / "bundle", class_names=tuple(class_names), dynamic=dynamic)
    return Trained(data, result, folder / "bundle")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Trained:
    """Two classes, 16 bits."""
    return make(tmp_path_factory.mktemp("binary"), CLASSES[:2], dynamic=("batch",), bits=16)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Trained:
    """Three classes, 8 bits; the graph takes one picture at a time."""
    return make(tmp_path_factory.mktemp("three"), CLASSES, dynamic=())


# Of an official checkpoint, which does not say them.
OPTIONS = ["--model", "medmamba_t", *(word for key, value in SMALL.items() for word in ("--set", f"{key}={value}"))]


def numbers(document: Any, path: str = "") -> dict[str, float]:
    """All figures of a document by their path."""
    if isinstance(document, dict):
        document = list(document.items())
    elif isinstance(document, list):
        document = list(enumerate(document))
    elif isinstance(document, (int, float)):
        return {path: float(document)}
    else:
        return {}
    return {k: v for key, value in document for k, v in numbers(value, f"{path}/{key}").items()}


@pytest.mark.parametrize("which", ["binary", "three"])
def test_an_engine_is_judged_as_pytorch_is(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    trained: Trained = request.getfixturevalue(which)
    candidates = [
        open_model(trained.checkpoint, None, {}, torch.device("cpu"))[0],
        open_bundle(trained.bundle, "ort-cpu", 1),
        open_bundle(trained.bundle, "ort-function", 1),
    ]
    for flip in (False, True):
        evaluation = evaluate(candidates, open_dataset(trained.data), Request(flip=flip, resamples=50))
        reference, *engines = evaluation.judged
        assert reference.figures.count == 40
        assert 0.5 < reference.figures.auc < 1
        for engine, comparison in zip(engines, evaluation.comparisons, strict=True):
            np.testing.assert_allclose(engine.outcome.logits, reference.outcome.logits, rtol=0, atol=1e-4)
            assert np.array_equal(engine.figures.confusion, reference.figures.confusion)
            assert numbers(engine.figures.to_json()) == pytest.approx(numbers(reference.figures.to_json()), abs=1e-5)
            assert comparison.passed
            assert comparison.same_confusion
            assert comparison.agreement == 1


def test_report(binary: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    options = ["--data", binary.data, "--out", out, "--bootstrap", "50", "--seed", "0"]
    assert call(binary.checkpoint, binary.bundle, "--backend", "ort-cpu", *options) == 0
    printed = capsys.readouterr().out
    assert "ort-cpu says what pytorch says" in printed
    assert "green told from the other class" in printed
    assert "the positive class is green; --positive blue takes the other" in printed
    names = {"evaluation.json", "pytorch.csv", "pytorch.png", "ort-cpu.csv", "ort-cpu.png"}
    assert {path.name for path in out.iterdir()} == names
    document = json.loads((out / "evaluation.json").read_text())
    pytorch, engine = document["candidates"]
    assert pytorch["source"]["file"] == "best.ckpt"
    assert engine["source"]["sha256"] == Bundle.load(binary.bundle).manifest.files["model.onnx"]
    with (out / "pytorch.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[3]["picture"] == "doubtful.npz:test[3]"
    assert sum(int(row["right"]) for row in rows) / len(rows) == pytorch["top1"]
    assert all(float(row["p_blue"]) + float(row["p_green"]) == pytest.approx(1) for row in rows)
    with Image.open(out / "pytorch.png") as sheet:
        assert sheet.size[0] > 1000


def test_a_run_ends_with_the_same_figures(three: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((three.result.folder / "summary.json").read_text())
    for part in ("val", "test"):
        options = ["--threshold-from", "val", "--json"]
        assert call(three.checkpoint, "--data", three.data, "--part", part, *options) == 0
        (candidate,) = json.loads(capsys.readouterr().out)["candidates"]
        assert numbers(summary[part]) == pytest.approx(numbers(candidate), abs=1e-6)
        assert {"loss", "top1", "auc", "count", "confusion"} <= set(summary[part])


def test_thresholds_come_from_validation_or_from_an_earlier_report(
    binary: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def points(*options: str | Path) -> dict[str, dict[str, Any]]:
        assert call(binary.bundle, "--backend", "ort-cpu", "--data", binary.data, "--json", *options) == 0
        document = json.loads(capsys.readouterr().out)
        return {point["rule"]: point for point in document["candidates"][0]["points"]}

    test, val = points(), points("--part", "val", "--out", tmp_path)
    assert {rule: point["threshold"] for rule, point in test.items()} == {
        rule: point["threshold"] for rule, point in val.items()
    }
    assert {rule: point["chosen_on"] for rule, point in test.items()} == {
        "0.5": "fixed",
        "youden": "val",
        "sensitivity=0.95": "val",
    }
    assert val["sensitivity=0.95"]["sensitivity"]["value"] >= 0.95
    own = points("--threshold-from", "test", "--threshold", "youden")
    assert own["youden"]["chosen_on"] == "test"
    assert own["youden"]["threshold"] != test["youden"]["threshold"]
    frozen = points("--threshold-from", tmp_path / "evaluation.json")
    assert frozen["youden"]["chosen_on"] == "evaluation.json"
    assert {**frozen["youden"], "chosen_on": "val"} == test["youden"]
    mirrored = points("--positive", "blue", "--threshold", "0.5")["0.5"]
    assert (mirrored["class_name"], mirrored["tp"], mirrored["tn"]) == ("blue", test["0.5"]["tn"], test["0.5"]["tp"])


def test_judging_the_set_that_thresholds_were_chosen_on_is_said(
    binary: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("val", "all"):
        assert call(binary.checkpoint, "--data", binary.data, "--part", part, "--threshold-from", "val") == 0
        printed = capsys.readouterr().out
        assert "thresholds were chosen on val, which is judged here" in printed
        assert ("was trained on pictures that are judged here" in printed) == (part == "all")
    assert call(binary.checkpoint, "--data", binary.data) == 0
    assert "flatter" not in capsys.readouterr().out


def test_classes_are_matched_by_name(three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shuffled = write_doubtful(tmp_path / "shuffled.npz", CLASSES, order=(2, 0, 1))
    documents = []
    for data in (three.data, shuffled):
        assert call(three.checkpoint, "--data", data, "--json") == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert open_dataset(shuffled).class_names != CLASSES
    assert documents[0]["class_names"] == documents[1]["class_names"] == list(CLASSES)
    assert documents[0]["candidates"] == documents[1]["candidates"]


def test_a_data_set_without_one_of_the_classes(
    three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(three.checkpoint, "--data", write_doubtful(tmp_path / "two.npz", CLASSES[:2])) == 0
    printed = capsys.readouterr().out
    assert "there is no picture of red: figures of these classes are not defined" in printed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("blue", "green", "rad"), "has a class that pytorch does not know: rad (pytorch has red instead)"),
        (("a", "b", "c"), "has 3 classes that pytorch does not know: a, b, c (pytorch has blue, green, red instead)"),
    ],
)
def test_classes_of_other_names(
    three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], message: str
) -> None:
    assert call(three.checkpoint, "--data", write_doubtful(tmp_path / "x.npz", names)) == 2
    assert message in capsys.readouterr().err


def test_more_classes_than_the_model_has(binary: Trained, three: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(binary.checkpoint, "--data", three.data) == 2
    assert "does not know: red (and all 2 others)" in capsys.readouterr().err


def test_official_checkpoints_name_their_model(
    three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No metadata: the model is named, its classes are counted, and matched by position."""
    path = tmp_path / "official.pth"
    torch.save({"model": three.result.model.state_dict()}, path)
    assert call(path, "--data", three.data) == 2
    assert "does not say which model it is of: add --model" in capsys.readouterr().err
    assert call(three.checkpoint, "--set", "d_state=4", "--data", three.data) == 2
    assert "state their own configuration: leave out d_state" in capsys.readouterr().err
    assert call(path, *OPTIONS, "--data", three.data, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["candidates"][0]["count"] == 40
    assert "pytorch names no classes: they are taken in the order of" in document["notes"][0]
    torch.save({"model": create_model("medmamba_t", 5, **SMALL).state_dict()}, path)
    assert call(path, *OPTIONS, "--data", three.data) == 2
    assert "has 3 classes and pytorch, which names none, has 5" in capsys.readouterr().err


def test_a_graph_of_a_fixed_batch(binary: Trained) -> None:
    """A stand-in for an engine that takes four frames and no other number: batches are cut, and the last one is filled up."""
    frames = np.stack([open_dataset(binary.data).val.read(index) for index in range(10)])
    real = open_bundle(binary.bundle, "ort-cpu", 1)
    expected = real(frames)

    class StandInForBatchesOfFour(type(real.engine)):  # type: ignore[misc]
        def infer(self, frames: Any) -> Any:
            assert len(frames) == 4
            return real.engine.infer(frames)

    manifest = real.engine.bundle.manifest
    card = manifest.input.model_copy(update={"shape": (4, *manifest.input.shape[1:])})
    bundle = Bundle(binary.bundle, manifest.model_copy(update={"input": card}))
    np.testing.assert_allclose(EngineCandidate(StandInForBatchesOfFour(bundle, threads=1))(frames), expected, atol=1e-5)


def test_an_engine_of_other_weights_fails(three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(create_model("medmamba_t", 3, **SMALL).state_dict(), tmp_path / "other.pth")
    options = [*OPTIONS, "--backend", "ort-cpu", "--data", three.data]
    assert call(tmp_path / "other.pth", three.bundle, *options) == 1
    assert "ort-cpu DIFFERS from what pytorch says" in capsys.readouterr().err
    # Another checkpoint is another model, which may differ.
    assert call(tmp_path / "other.pth", three.checkpoint, *options) == 0
    printed = capsys.readouterr().out
    assert "pytorch-other" in printed
    assert "pytorch-best" in printed


@pytest.mark.parametrize(
    ("bar", "status"), [("--min-top1=0.01", 0), ("--min-top1=0.99", 1), ("--min-auc=0.1", 0), ("--min-auc=0.999", 1)]
)
def test_bars(three: Trained, capsys: pytest.CaptureFixture[str], bar: str, status: int) -> None:
    assert call(three.checkpoint, "--data", three.data, bar) == status
    assert ("is below the bar of" in capsys.readouterr().err) == bool(status)


def write_tree(root: Path, count: int = 12) -> Path:
    """Stripes as PNG files, by class, without parts."""
    images, labels = stripes(count, 0)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"1.2.840.99.{index}.7.png")
    return root


def test_unreadable_pictures_are_counted(three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tree(tmp_path / "tree")
    (data / "red" / "1.2.840.99.2.7.png").write_bytes(b"no picture")
    options = ["--data", data, "--part", "all", "--out", tmp_path / "out"]
    assert call(three.checkpoint, *options) == 2
    message = capsys.readouterr().err
    assert "1 of " in message
    assert "--max-unreadable allows more" in message
    assert call(three.checkpoint, three.bundle, "--backend", "ort-cpu", *options, "--max-unreadable", "0.5") == 0
    printed = capsys.readouterr().out
    assert "tree, all: 11 pictures" in printed
    assert "1 pictures could not be read and were left out" in printed
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(document["unreadable"]) == 1
    # File names that are UIDs of instances are shown by their hash alone.
    for written in ("evaluation.json", "pytorch.csv"):
        assert "1.2.840.99" not in (tmp_path / "out" / written).read_text()


def test_no_patient_is_written(three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Patients of a table keep pictures together in the bootstrap, and are shown nowhere."""
    tree = write_tree(tmp_path / "tree")
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name},test,DOE^{index // 2}"
        for index, path in enumerate(sorted(tree.rglob("*.png")))
    ]
    rows += [
        f"tree/{name}/1.2.840.99.{index}.7.png,{name},{part},X{part}"
        for part in ("train", "val")
        for index, name in enumerate(CLASSES)
    ]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split,patient", *rows]) + "\n")
    assert call(three.checkpoint, "--data", tmp_path / "table.csv", "--out", tmp_path / "out") == 0
    written = [path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".png"]
    assert len(written) == 2
    assert not any("DOE" in text for text in (*written, capsys.readouterr().out))


def test_data_without_parts_is_divided_as_in_training(three: Trained, tmp_path: Path) -> None:
    data = write_tree(tmp_path / "tree", 30)
    result = train(tiny(data, tmp_path / "run", epochs=1, seed=7, val_fraction=0.3, limit_train_batches=1))
    assert result is not None
    assert call(result.best, "--data", data, "--out", tmp_path / "out") == 0
    with (tmp_path / "out" / "pytorch.csv").open(newline="") as file:
        shown = [Path(row["picture"]).parent.name for row in csv.DictReader(file)]
    val = open_dataset(data, val_fraction=0.3, seed=7).val
    assert shown == [Path(val.name(index)).parent.name for index in range(len(val))]
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document["candidates"][0]["auc"] == pytest.approx(result.val.auc, abs=1e-6)


def test_ctrl_c_leaves_nothing(
    three: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: TorchCandidate, frames: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return np.zeros((len(frames), 3), np.float32)

    monkeypatch.setattr(TorchCandidate, "__call__", interrupt)
    assert call(three.checkpoint, "--data", three.data, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err.strip() == "edgemamba: error: interrupted"
    assert not list((tmp_path / "out").iterdir())


def test_pictures_are_decoded_once_for_all(three: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = open_dataset(three.data).val
    read: list[int] = []
    original = type(pictures).read
    monkeypatch.setattr(type(pictures), "read", lambda self, index: (read.append(index), original(self, index))[1])
    candidates = [TorchCandidate(three.result.model, CLASSES), open_bundle(three.bundle, "ort-cpu", 1)]
    first, second = predict(candidates, pictures, batch_size=4)
    assert read == list(range(len(pictures)))
    assert first.names == second.names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz does not exist"),
        (["--threshold", "best"], "--threshold is 'best'"),
        (["--threshold-from", "dev"], "--threshold-from is dev: a part (val) or the evaluation.json"),
        (["--positive", "blue"], "--positive goes with two classes, and there are 3"),
        (["--backend", "cudnn", "BUNDLE"], "there is no backend 'cudnn'"),
        (["--model", "vim_tiny"], "is of medmamba_t, not vim_tiny"),
        (["--device", "tpu9"], "--device tpu9 cannot be used"),
        (["--part", "dev"], "dev"),
        (["nowhere.ckpt"], "nowhere.ckpt"),
        (["--out", "FILE/report"], "cannot be written"),
        (["--tolerance", "0"], "--tolerance is 0"),
    ],
)
def test_bad_usage(
    three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "FILE").write_text("")
    places = {"BUNDLE": str(three.bundle), "FILE/report": str(tmp_path / "FILE" / "report")}
    given = [places.get(option, option) for option in options]
    data = [] if "--data" in options else ["--data", three.data]
    assert call(three.checkpoint, *data, *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("edgemamba: error: ")
    assert len(error.strip().splitlines()) == 1


def test_parts_that_are_not_there(three: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tree(tmp_path / "tree")
    assert call(three.checkpoint, "--data", data, "--part", "test") == 2
    assert "has no test part; it has: train, val" in capsys.readouterr().err
    shutil.rmtree(data / "green")
    (data / "green").mkdir()
    assert call(three.checkpoint, "--data", data) == 2
    assert "has no picture in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"thresholds": {"values": {"youden": {"green": 7}}}}', '{"thresholds": 1}']
)
def test_files_that_hold_no_thresholds(
    binary: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    path = tmp_path / "evaluation.json"
    assert call(binary.checkpoint, "--data", binary.data, "--threshold-from", path) == 2
    assert "evaluation.json" in capsys.readouterr().err

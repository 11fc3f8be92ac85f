"""Runs that train segmenters: what they leave, that they resume, and that they learn from real pictures and in three dimensions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segmentation_toys import TISSUES, brain_slices, tiny_segmentation, write_brain, write_discs
from training_toys import RUN_FILES, files_of

from edgemamba.runtime.cli import main
from edgemamba.train import create_model, load_checkpoint
from edgemamba.train.checkpoint import read_training_checkpoint
from edgemamba.train.history import read_history
from edgemamba.train.models.segmenter import Segmenter
from edgemamba.train.segmentation.module import DiceCrossEntropy
from edgemamba.train.segmentation.predicting import slide
from edgemamba.train.segmentation.scoring import score_case, score_dice, summarise
from edgemamba.train.segmentation.training import SegmentationResult, train_segmenter

pytest.importorskip("monai")
nibabel = pytest.importorskip("nibabel")

SEGMAMBA = {"depths": (1, 1, 1, 1), "feat_size": (8, 8, 8, 8), "hidden_size": 8}


def run(*arguments: Any, **keywords: Any) -> SegmentationResult:
    result = train_segmenter(*arguments, **keywords)
    assert result is not None
    return result


@pytest.mark.parametrize("head", ["fpn", "upernet"])
def test_a_run_leaves_all_it_promises(head: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = {"dims": (16, 32), "depths": (1, 1)}
    result = run(tiny_segmentation(write_discs(tmp_path / "data"), out, model="vmamba_t", config=config, head=head))
    assert files_of(out) >= RUN_FILES
    assert set(read_history(out / "metrics.csv")[0]) >= {"train_loss", "val_loss", "val_dice"}
    written = json.loads((out / "summary.json").read_text())
    assert written["class_names"] == ["background", "class 1"]
    assert len(written["val"]["cases"]) == 2
    model, class_names, preprocessing = read_training_checkpoint(result.best)
    assert isinstance(model, Segmenter)
    assert (class_names, model.num_classes) == (["background", "class 1"], 2)
    assert preprocessing is not None
    assert (preprocessing.size, preprocessing.dtype) == ((32, 32), "uint8")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(x), result.model.eval()(x))


@pytest.mark.parametrize("sampling", ["resize", "patches"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(sampling: str, tmp_path: Path) -> None:
    data = write_discs(tmp_path / "data")
    changes: dict[str, Any] = {"sampling": sampling, "size": (16, 16), "scheduler": "constant", "patches_per_case": 2}
    whole = run(tiny_segmentation(data, tmp_path / "whole", epochs=3, **changes))
    run(tiny_segmentation(data, tmp_path / "parts", epochs=1, **changes))
    resumed = run(tiny_segmentation(data, tmp_path / "parts", epochs=3, **changes), resume="auto")
    for one, other in zip(whole.history, resumed.history, strict=True):
        # The rows of the first part were read from the table, of eight figures.
        assert {**one, "seconds": 0} == pytest.approx({**other, "seconds": 0}, rel=1e-7)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_a_classifiers_checkpoint_is_a_start_and_frozen_stages_stay(tmp_path: Path) -> None:
    torch.manual_seed(3)
    options = {"dims": (16, 32), "depths": (1, 1), "d_state": 4}
    classifier = create_model("medmamba_t", num_classes=9, **options)
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    settings = tiny_segmentation(
        write_discs(tmp_path / "data"),
        tmp_path / "run",
        epochs=1,
        checkpoint=str(tmp_path / "w.pth"),
        freeze="all-but-head",
    )
    result = run(settings)
    assert isinstance(result.model, Segmenter)
    for name, parameter in result.model.backbone.named_parameters():
        assert torch.equal(parameter, classifier.state_dict()[name]), name
    again = run(
        settings.model_copy(update={"out": str(tmp_path / "again"), "checkpoint": str(result.best), "freeze": None})
    )
    assert again.history[0]["train_loss"] != result.history[0]["train_loss"]


@pytest.mark.slow
def test_tissues_of_a_real_brain_are_learned_better_than_by_their_grey_values(tmp_path: Path) -> None:
    settings = tiny_segmentation(
        write_brain(tmp_path / "data"),
        tmp_path / "run",
        model="vmamba_t",
        config={"dims": (16, 32, 64), "depths": (1, 1, 1), "stem": "patch", "patch_size": 2},
        head_dim=32,
        size=(116, 100),
        epochs=9,
        batch_size=6,
        lr=4e-3,
        drop_path=0.0,
        ema_decay=0.9,
        augmentation={"enabled": False},
    )
    result = run(settings)
    assert result.test is not None
    assert result.class_names == TISSUES
    # The baseline knows the most frequent tissue of each grey value in training: the best that no look around can beat.
    pictures, masks = (np.stack(arrays) for arrays in zip(*brain_slices("train", 2).values(), strict=True))
    counts = [np.bincount(masks[pictures == grey], minlength=3) for grey in range(256)]
    table = np.argmax(counts, axis=1)
    cases = [
        score_case(name, torch.from_numpy(table[image]), torch.from_numpy(mask.copy()), 3, (1.0, 1.0))
        for name, (image, mask) in brain_slices("val").items()
    ]
    baseline = summarise(cases, TISSUES, "px")
    assert result.val.dice > baseline.dice + 0.08, (result.val.dice, baseline.dice)
    assert all(figures.judged == 4 for figures in result.val.classes.values())


def test_segmamba_learns_a_patch_by_heart() -> None:
    torch.manual_seed(0)
    model = create_model("segmamba", num_classes=2, in_chans=1, img_size=32, **SEGMAMBA)
    z, y, x = torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij")
    labels = (((z - 14) ** 2 + (y - 18) ** 2 + (x - 15) ** 2) < 81).long()[None]
    volume = (torch.randn(1, 1, 32, 32, 32) * 0.3 + labels[:, None]).float()
    loss_of, optimizer = DiceCrossEntropy(1.0, 1.0), torch.optim.AdamW(model.parameters(), 2e-2)
    losses = []
    for _ in range(14):
        loss = loss_of(model(volume), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    with torch.inference_mode():
        assert score_dice(model(volume).argmax(1)[0], labels[0], 2).item() > 0.9
        assert score_dice(slide(model.eval(), volume, (32, 32, 32), 0.5).argmax(1)[0], labels[0], 2).item() > 0.9


def test_volumes_are_trained_on_patches_and_scored_in_millimetres(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        mask = np.zeros((40, 36, 34), np.uint8)
        mask[8:30, 10:26, 12 + i : 24] = 1
        affine = np.diag([2.0, 2.0, 3.0, 1.0])
        for kind, values in (("images", mask + rng.normal(0, 0.2, mask.shape).astype(np.float32)), ("masks", mask)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "data" / kind / f"case{i}.nii.gz")
    out = tmp_path / "run"
    arguments = [
        "--set",
        "depths=1,1,1,1",
        "--set",
        "feat_size=4,8,8,8",
        "--set",
        "hidden_size=8",
    ]
    arguments += [
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(out),
        "--size",
        "32",
        "--epochs",
        "1",
    ]
    arguments += [
        "--batch-size",
        "1",
        "--workers",
        "0",
        "--accelerator",
        "cpu",
        "--normalise",
        "zscore",
        "--val-fraction",
        "0.4",
    ]
    with pytest.raises(SystemExit) as left:
        main(["segment", "--model", "segmamba", *arguments])
    assert left.value.code == 0
    written = json.loads((out / "summary.json").read_text())
    assert written["val"]["unit"] == "mm"
    model, _, preprocessing = read_training_checkpoint(out / "checkpoints/best.ckpt")
    assert preprocessing is None
    assert model.volume is not None
    assert (model.volume.modalities, model.volume.patch) == (("image",), (32, 32, 32))
    assert model.volume.normalisation[0].kind == "zscore"
    other = create_model(
        "segmamba", num_classes=2, in_chans=1, img_size=32, depths=(1,) * 4, feat_size=(4, 8, 8, 8), hidden_size=8
    )
    assert load_checkpoint(other, out / "checkpoints/best.ckpt").adapted == {}


def test_the_command_says_what_came_out_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_discs(tmp_path / "data")
    common = [
        "segment",
        "--model",
        "medmamba_t",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "dims=16,32",
    ]
    common += [
        "--set",
        "depths=1,1",
        "--set",
        "d_state=4",
        "--head-dim",
        "16",
        "--workers",
        "0",
        "--accelerator",
        "cpu",
    ]
    with pytest.raises(SystemExit) as left:
        main([*common, "--size", "32", "--epochs", "1", "--limit-train-batches", "1", "--json"])
    printed = capsys.readouterr()
    assert left.value.code == 0
    assert json.loads(printed.out)["epochs"] == 1
    assert "validation: mean Dice" in printed.err
    assert "n = 2" in printed.err
    with pytest.raises(SystemExit) as left:
        main([*common, "--size", "32x32x32"])
    assert left.value.code == 2
    assert "--size is '32x32x32'; 352 or 352x480" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--normalise", "1,2,3"), "a window has two ends"),
        (("--normalise", "240,-160"), "low < high"),
        (("--normalise", "a,b"), "numbers with commas"),
        (("--spacing", "1"), "three numbers of mm are needed"),
    ],
)
def test_options_of_volumes_that_make_no_sense(
    option: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["segment", "--model", "segmamba", "--data", str(tmp_path), *option])
    assert left.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())

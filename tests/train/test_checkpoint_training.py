"""Checkpoints of our own training, which say what model they are of, on what grid, and how it is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgemamba.runtime.errors import CheckpointError
from edgemamba.train import create_model, load_checkpoint
from edgemamba.train.checkpoint import METADATA_KEY, read_training_checkpoint, training_metadata
from edgemamba.train.models.backbone import Backbone


def vim(**options: Any) -> Backbone:
    return create_model("vim_tiny", **({"img_size": 48, "embed_dim": 16, "depth": 1, "num_classes": 5} | options))


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def write_training_checkpoint(path: Path, **changes: Any) -> Backbone:
    model = vim(drop_path_rate=0.0)
    metadata = training_metadata(model, ["a", "b", "c", "d", "e"]) | changes
    torch.save({METADATA_KEY: metadata, "state_dict": prefixed("model.", model.state_dict()), "epoch": 1}, path)
    return model.eval()


def test_a_training_checkpoint_says_everything(tmp_path: Path) -> None:
    source = write_training_checkpoint(tmp_path / "last.ckpt")
    model, class_names, preprocessing = read_training_checkpoint(tmp_path / "last.ckpt")
    assert class_names == ["a", "b", "c", "d", "e"]
    assert preprocessing == source.preprocessing == model.preprocessing
    assert model.config == source.config
    assert not model.training
    x = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(model(x), source(x))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 2}, "format 2; this version reads format 1"),
        ({"class_names": ["a"]}, "names 1 classes of 5"),
        ({"config": {"depth": 1, "num_classes": 5}}, "does not fit|contradicts"),
        ({"config": None}, "damaged metadata"),
        ({"preprocessing": {"size": [0, 0]}}, "damaged metadata"),
    ],
)
def test_a_training_checkpoint_that_contradicts_itself(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_training_checkpoint(tmp_path / "last.ckpt", **changes)
    with pytest.raises(CheckpointError, match=text):
        read_training_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("size", [(32, 128), (48, 80)])
@pytest.mark.parametrize("cls_token", ["none", "middle"])
def test_a_training_checkpoint_says_what_grid_its_positions_are_of(
    size: tuple[int, int], cls_token: str, tmp_path: Path
) -> None:
    """One of 2 x 8 positions has as many as one of 4 x 4; official files never say, and are taken for square."""
    source = vim(img_size=size, cls_token=cls_token, dynamic_img_size=True).eval()
    target = vim(img_size=64, cls_token=cls_token).eval()
    metadata = training_metadata(source, [f"class {i}" for i in range(5)])
    torch.save({"state_dict": source.state_dict(), METADATA_KEY: metadata}, tmp_path / "w.ckpt")
    report = load_checkpoint(target, tmp_path / "w.ckpt")
    grid = f"{size[0] // 16}x{size[1] // 16}"
    assert report.adapted == {"pos_embed": f"resized from a grid of {grid} to 4x4 (bicubic), for fine-tuning"}
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(target(x), source(x))


def test_an_official_file_is_not_a_training_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": vim().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="was not written by edgemamba train"):
        read_training_checkpoint(tmp_path / "w.pth")

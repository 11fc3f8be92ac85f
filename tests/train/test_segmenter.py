"""Segmenters made of every family's backbone: shapes, gradients, export, weights, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import SIDE, SMALL, small_model, small_options
from torch import Tensor

from edgemamba.runtime.errors import ModelError
from edgemamba.train import create_model, load_checkpoint
from edgemamba.train.models.segmentation_heads import HEADS, _mean_grid
from edgemamba.train.models.segmenter import Segmenter

CLASSES = 3


def small_segmenter(name: str, head: Any = "fpn", seed: int = 0, **options: Any) -> Segmenter:
    torch.manual_seed(seed)
    return create_model(name, head=head, **small_options(name, num_classes=CLASSES, **({"head_dim": 16} | options)))


def pictures(height: int = SIDE, width: int = SIDE, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SMALL)
def test_a_backbone_gets_logits_for_every_pixel(name: str, head: str) -> None:
    model = small_segmenter(name, head).eval()
    x = pictures()
    with torch.inference_mode():
        logits = model(x)
    assert logits.shape == (1, CLASSES, SIDE, SIDE)
    assert (model.task, model.model_name, model.num_classes) == ("segmentation", name, CLASSES)
    assert model.preprocessing.resize == "squash"
    # What a bundle or a checkpoint keeps of it makes it again.
    again = create_model(model.model_name, **dataclasses.asdict(model.config))
    assert isinstance(again, Segmenter)
    again.eval().load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(x), logits)


@pytest.mark.parametrize(
    ("name", "head"),
    [("vim_tiny", "upernet"), ("vmamba_t", "fpn"), ("plain_mamba_l1", "fpn"), ("mambavision_t", "upernet")],
)
def test_it_is_exported_as_it_is(name: str, head: str) -> None:
    model, x = small_segmenter(name, head).eval(), pictures()
    program = torch.export.export(model, (x,), strict=False)
    with torch.inference_mode():
        assert torch.equal(program.module()(x), model(x))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["vmamba_t", "plain_mamba_l1", "vim_tiny"])
def test_any_size_that_the_backbone_takes(name: str, head: str) -> None:
    options = {"img_size": (70, 90)} if name == "vim_tiny" else {}
    with torch.inference_mode():
        assert small_segmenter(name, head, **options).eval()(pictures(70, 90)).shape == (1, CLASSES, 70, 90)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["medmamba_t", "local_vim_t"])
def test_training_reaches_every_parameter(name: str, head: str) -> None:
    model = small_segmenter(name, head)
    model(pictures(batch=2)).square().mean().backward()
    # MedMamba's last stage ends in a norm of the classifier's; whatever is left of a backbone must be of use.
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert {key.rpartition(".")[2] for key in model.no_weight_decay()} >= {
        key.rpartition(".")[2] for key in model.backbone.no_weight_decay()
    }


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 6), (9, 5)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_pooling_by_products_is_adaptive_pooling(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(_mean_grid(x, side), F.adaptive_avg_pool2d(x, side), rtol=0, atol=1e-12)


def test_a_classifiers_weights_are_a_start(tmp_path: Path) -> None:
    source = small_model("vmamba_t", seed=1)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    model = small_segmenter("vmamba_t")
    report = load_checkpoint(model.backbone, tmp_path / "w.pth")
    assert report.adapted == {}
    assert any("classifier.head: 2 tensors left out" in note for note in report.notes)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("name", SMALL)
def test_a_segmenters_own_weights_are_read(name: str, tmp_path: Path) -> None:
    source, model = small_segmenter(name, seed=1), small_segmenter(name)
    torch.save({"state_dict": {f"model.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.ckpt")
    report = load_checkpoint(model, tmp_path / "w.ckpt")
    assert (report.adapted, report.notes) == ({}, ())
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_segmenters_own_weights_with_other_classes(tmp_path: Path) -> None:
    source = small_segmenter("vim_tiny", seed=1)
    torch.save({"state_dict": {f"model.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.ckpt")
    other = create_model("vim_tiny", head="fpn", **small_options("vim_tiny", num_classes=7, head_dim=16))
    assert set(load_checkpoint(other, tmp_path / "w.ckpt").adapted) == {
        "head.classifier.weight",
        "head.classifier.bias",
    }
    larger = small_segmenter("vim_tiny", img_size=96)
    assert list(load_checkpoint(larger, tmp_path / "w.ckpt").adapted) == ["backbone.pos_embed"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vmamba_t", {"head": "unet", "num_classes": 3}, "head is 'unet'; one of 'fpn', 'upernet'"),
        ("vmamba_t", {"head": "fpn"}, "needs num_classes"),
        ("vmamba_t", {"head": "fpn", "num_classes": 1}, "2 or more classes"),
        ("vmamba_t", {"head": "fpn", "num_classes": 3, "head_dim": 4}, "head_dim is 4"),
        ("vmamba_t", {"head": "fpn", "num_classes": 3, "head_dims": 64}, "nearest: head_dim"),
        ("vmamba_t", {"head": "fpn", "num_classes": 3, "features_only": True}, "features_only"),
        ("vmamba_t", {"head_dim": 64}, "no option 'head_dim'"),
        ("vmamba_t", {"head": "fpn", "num_classes": 3, "out_indices": (0, 1)}, "out_indices and head"),
        ("segmamba", {"head": "fpn", "num_classes": 3}, "a head is for classifiers"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=message):
        create_model(name, **options)

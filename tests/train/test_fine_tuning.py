"""Frozen stages, a rate for each layer, class weights, patience, and what is left of a run that diverges."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import SIDE, SMALL, small_model
from timm.models import group_parameters
from torch import Tensor, nn
from training_toys import tiny, write_npz

from edgemamba.runtime.errors import CheckpointError, TrainingError
from edgemamba.train.checkpoint import read_training_checkpoint
from edgemamba.train.classifier import Classifier
from edgemamba.train.data.loading import Batch
from edgemamba.train.fine_tuning import class_weights, create_optimizer, freeze, keep_frozen
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.settings import TrainingSettings
from edgemamba.train.training import TrainingResult, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "stripes.npz")


@pytest.fixture(scope="module")
def start(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A trained MedMamba, whose batch norms have measured."""
    result = train(tiny(npz, tmp_path_factory.mktemp("start"), epochs=1))
    assert result is not None
    return result


def state(path: Path) -> dict[str, Tensor]:
    model, _, _ = read_training_checkpoint(path)
    return model.state_dict()


def layers_in_order(model: Backbone) -> list[str]:
    """Names of parameters in the order in which a forward pass enters the modules that they belong to."""
    order: list[str] = []

    def note(path: str) -> Any:
        def hook(module: nn.Module, _: Any) -> None:
            order.extend(f"{path}.{name}" for name, _ in module.named_parameters(recurse=False))

        return hook

    handles = [module.register_forward_pre_hook(note(path)) for path, module in model.named_modules() if path]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, SIDE, SIDE))
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_in_the_group_of_its_layer(name: str, coarse: bool) -> None:
    """Each once, and the groups come in the order in which the network uses them."""
    model = small_model(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [key for group in sorted(groups) for key in groups[group]]
    assert sorted(names) == sorted(key for key, _ in model.named_parameters())
    of = {key: group for group, keys in groups.items() for key in keys}
    used = layers_in_order(model)
    assert len(used) > len(of) / 3
    assert [of[key] for key in used] == sorted(of[key] for key in used)
    tail = {path for path in (model.classifier_path, model.norm_path) if path}
    assert {key.rpartition(".")[0] for key in groups[max(groups)]} == tail


@pytest.mark.parametrize("stages", [0, 1, "all-but-head"])
@pytest.mark.parametrize("name", SMALL)
def test_frozen_parts_do_not_change(name: str, stages: Any) -> None:
    """To the bit, batch norms' averages too, and they get no gradient; all the rest does and changes."""
    model = small_model(name, drop_path_rate=0.5)
    frozen = set(freeze(model, stages))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = create_optimizer(model, settings(weight_decay=0.1, optimizer="adamw"), 1e-2)
    model.train()
    keep_frozen(model)
    for seed in range(2):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(4, 3, SIDE, SIDE)).square().mean().backward()
        optimizer.step()
    assert frozen
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (key in frozen), key
    for key, value in model.state_dict().items():
        if key in frozen:
            assert torch.equal(value, before[key]), key
        elif key in dict(model.named_parameters()):
            assert not torch.equal(value, before[key]), key
    parts = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.requires_grad]
    assert not any(part.training for part in parts)
    if stages == "all-but-head":
        assert set(dict(model.named_parameters())) - frozen == {
            f"{model.classifier_path}.weight",
            f"{model.classifier_path}.bias",
        }
        assert {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])} == {
            f"{model.classifier_path}.weight",
            f"{model.classifier_path}.bias",
        }


def test_a_run_leaves_frozen_stages_as_they_were(
    npz: Path, tmp_path: Path, start: TrainingResult, capsys: pytest.CaptureFixture[str]
) -> None:
    """After epochs of training and validation, and in the moving average; what was loaded and what is frozen is said."""
    for ema in (True, False):
        changes = {"freeze": 1, "checkpoint": str(start.best), "ema": ema, "epochs": 2}
        result = train(tiny(npz, tmp_path / str(ema), **changes))
        assert result is not None
        before, after = state(start.best), state(result.best)
        same = {key for key in before if torch.equal(before[key], after[key])}
        stem = {key for key in before if key.startswith(("patch_embed.", "layers.0."))}
        assert any("running_mean" in key for key in stem)
        assert stem <= same
        printed = capsys.readouterr().err
        assert "best.ckpt: " in printed
        assert re.search(r"frozen: 0\.0\d M of 0\.02 M parameters, in \d+ tensors", printed)
        assert not any(key.startswith(("layers.1.blocks", "head.")) for key in same if "num_batches" not in key)


def test_frozen_runs_resume(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(npz, out, epochs=1, freeze=0, layer_decay=0.5))
    resumed = train(tiny(npz, out, epochs=2, freeze=0, layer_decay=0.5), resume="auto")
    assert resumed is not None
    assert len(resumed.history) == 2


def test_too_many_stages_to_freeze(npz: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--freeze is 3 and medmamba_t has 2 stages"):
        train(tiny(npz, tmp_path / "run", freeze=3))


def settings(**changes: Any) -> TrainingSettings:
    return tiny(Path("x"), Path("y"), **changes)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "lookahead_adamw"])
def test_layers_learn_at_their_own_rates(npz: Path, tmp_path: Path, optimizer: str) -> None:
    """The rates that the run itself uses at its peak: half of the next layer's, and the classifier's is whole."""
    seen: list[dict[str, float]] = []

    class Watched(Classifier):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            names = {id(p): key for key, p in self.model.named_parameters()}
            seen.append({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})

    changes = {"layer_decay": 0.5, "optimizer": optimizer, "scheduler": "constant", "epochs": 1, "lr": 1e-3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgemamba.train.training.Classifier", Watched)
        result = train(tiny(npz, tmp_path / "run", **changes))
    assert result is not None
    groups = group_parameters(result.model, result.model.group_matcher(), reverse=True)
    last = max(groups.values())
    assert last > 2
    for name, rate in seen[-1].items():
        assert rate == pytest.approx(1e-3 * 0.5 ** (last - groups[name])), name
    assert result.history[-1]["lr"] == pytest.approx(1e-3)


def test_betas_and_epsilon_reach_the_optimiser() -> None:
    model = small_model("vim_tiny")
    optimizer = create_optimizer(model, settings(betas=(0.8, 0.95), opt_eps=1e-6), 1e-3)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-6}
    with pytest.raises(TrainingError, match="--opt adahessian needs second derivatives"):
        create_optimizer(model, settings(optimizer="adahessian"), 1e-3)
    with pytest.raises(TrainingError, match="--opt sgd has no betas"):
        create_optimizer(model, settings(optimizer="sgd", betas=(0.8, 0.95)), 1e-3)
    with pytest.raises(TrainingError, match="--opt lookahead_lion has no epsilon"):
        create_optimizer(model, settings(optimizer="lookahead_lion", opt_eps=1e-6), 1e-3)


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_class_weights_in_the_loss(npz: Path, mixup: float) -> None:
    """The weighted cross entropy written out, with hard labels and with mixed ones."""
    module = Classifier(small_model("medmamba_t", num_classes=3), settings(label_smoothing=0.0, mixup=mixup), "abc")
    module.class_weights = torch.tensor([1.0, 2.0, 4.0])
    batch = Batch(torch.randn(4, 3, SIDE, SIDE), torch.tensor([0, 1, 2, 2]), {})
    module.eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "log", lambda *arguments, **options: None)
        np.random.seed(0)
        loss = module.training_step(batch, 0)
    assert module._batch is not None
    pixels, labels = module._batch
    target = labels if labels.dim() == 2 else F.one_hot(labels, 3).float()
    log = F.log_softmax(module.model(pixels), dim=1)
    weighted = -(target * log * module.class_weights).sum(dim=1)
    # torch divides by the weights of hard labels, and by the number of soft ones.
    scale = 4 if mixup else float(module.class_weights[labels].sum())
    torch.testing.assert_close(loss, weighted.sum() / scale)


def test_balanced_weights() -> None:
    weights = class_weights("balanced", ("a", "b", "c"), (10, 20, 70))
    assert weights is not None
    torch.testing.assert_close(weights * torch.tensor([10.0, 20.0, 70.0]), torch.full((3,), 100 / 3))
    assert class_weights("none", ("a", "b"), (1, 2)) is None
    given = class_weights((1.0, 2.5), ("a", "b"), (1, 2))
    assert given is not None
    assert given.tolist() == [1.0, 2.5]


def test_runs_weigh_the_classes_of_the_training_part(tmp_path: Path) -> None:
    images, labels = np.zeros((12, 32, 32, 3), np.uint8), np.array([0] * 9 + [1] * 3)
    npz = tmp_path / "x.npz"
    np.savez(npz, train_images=images, train_labels=labels, val_images=images, val_labels=labels)
    seen: list[Tensor | None] = []
    with pytest.MonkeyPatch.context() as patch:
        original = Classifier.on_train_epoch_end
        patch.setattr(
            Classifier, "on_train_epoch_end", lambda self: (seen.append(self.class_weights), original(self))[1]
        )
        result = train(tiny(npz, tmp_path / "run", epochs=1, class_weights="balanced"))
    assert result is not None
    (weights,) = seen
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([12 / 18, 12 / 6]))
    assert not any("class_weights" in key for key in torch.load(result.last, weights_only=True)["state_dict"])
    with pytest.raises(
        TrainingError, match="--class-weights gives 3 numbers and there are 2 classes, in this order: 0, 1"
    ):
        train(tiny(npz, tmp_path / "other", class_weights="1,2,3"))


def test_patience_ends_a_run_and_more_of_it_goes_on(npz: Path, tmp_path: Path) -> None:
    """With a rate of next to nothing no epoch is better than the first."""
    changes = {"epochs": 9, "lr": 1e-12, "min_lr": 0.0, "monitor": "top1", "ema": False}
    first = train(tiny(npz, tmp_path / "run", patience=2, **changes))
    assert first is not None
    assert len(first.history) == 3
    longer = train(tiny(npz, tmp_path / "run", patience=5, **changes), resume="auto")
    assert longer is not None
    assert len(longer.history) == 6


def test_a_diverging_run_keeps_its_batch_and_its_checkpoint(npz: Path, tmp_path: Path) -> None:
    """Nothing is poisoned: steps of gradient descent at an absurd rate, with a checkpoint after each."""
    run = tiny(
        npz,
        tmp_path / "run",
        optimizer="sgd",
        lr=1e6,
        scheduler="constant",
        clip_grad=None,
        ema=False,
        mixup=0.2,
        epochs=30,
        checkpoint_minutes=1e-9,
    )
    with pytest.raises(
        TrainingError, match=r"training diverged and was stopped; the last checkpoint is intact"
    ) as caught:
        train(run)
    (path,) = run.folder.glob("diverged_step*_rank0.npz")
    assert str(path) in str(caught.value)
    saved = np.load(path)
    assert saved["pixels"].shape == (8, 3, 32, 32)
    assert np.isfinite(saved["pixels"]).all()
    assert saved["labels"].shape == (8, 3)
    assert f"at step {saved['step']} (epoch {saved['epoch']})" in str(caught.value)
    kept = torch.load(run.last, weights_only=True)
    assert 0 < kept["global_step"] <= int(saved["step"])
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values() if value.is_floating_point())
    read_training_checkpoint(run.last)


def test_weights_that_are_not_finite_are_never_saved(npz: Path, tmp_path: Path, start: TrainingResult) -> None:
    """The only step of the second epoch breaks the weights; no loss has shown it when the epoch's checkpoint is due."""
    options: dict[str, Any] = {"ema": False, "limit_train_batches": 1, "clip_grad": None, "optimizer": "sgd"}
    run = tiny(npz, tmp_path / "run", epochs=1, **options)
    assert train(run) is not None
    before = run.last.read_bytes()

    def explode(self: Classifier, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 3e38
            for parameter in group["params"]:
                parameter.grad.mul_(1e30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_before_optimizer_step", explode)
        with pytest.raises(TrainingError, match=r"is not finite at step 2 .*diverged_step2_rank0\.npz"):
            train(tiny(npz, tmp_path / "run", epochs=2, **options), resume="auto")
    assert run.last.read_bytes() == before


SHARES = """
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from edgemamba.train.divergence import not_finite

distributed.init_process_group("gloo")
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
found = [not_finite(model)]
if distributed.get_rank() == 1:
    with torch.no_grad():
        model[1].weight.to_local().fill_(float("nan"))
found.append(not_finite(model))
assert found == [None, ("a weight of another rank", "1.weight")[distributed.get_rank()]], found
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_all_ranks_know_of_a_broken_share(tmp_path: Path) -> None:
    """Two processes, half of a model in each: both refuse to save what one of them has broken."""
    script = tmp_path / "shares.py"
    script.write_text(SHARES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_of_another_architecture(npz: Path, tmp_path: Path, start: TrainingResult) -> None:
    torch.save({"model": small_model("vim_tiny").state_dict()}, tmp_path / "vim.pth")
    run = tiny(npz, tmp_path / "run", checkpoint=str(tmp_path / "vim.pth"))
    with pytest.raises(
        CheckpointError, match=r"vim\.pth does not fit medmamba_t, it looks like a Vision Mamba checkpoint"
    ) as caught:
        train(run)
    assert "\n" not in str(caught.value)
    assert not run.folder.exists()
    other = tiny(npz, start.folder, epochs=2, config={"dims": (16, 32), "depths": (1, 2), "d_state": 4})
    before = start.last.read_bytes()
    with pytest.raises(TrainingError, match="the checkpoint was trained with --set"):
        train(other, resume="auto")
    assert start.last.read_bytes() == before


def test_the_linear_rule_reaches_the_optimiser(npz: Path, tmp_path: Path) -> None:
    """Batches of 8, two to an update: half the rate that is for 32."""
    run = tiny(npz, tmp_path / "run", epochs=1, lr=1e-3, lr_batch=32, accumulate=2, scheduler="constant")
    result = train(run)
    assert result is not None
    assert result.history[0]["lr"] == pytest.approx(5e-4)


CHANGES: dict[str, Any] = {
    "recipe": "vim",
    "fold": (1, 5),
    "betas": (0.9, 0.95),
    "opt_eps": 1e-6,
    "lr_batch": 512,
    "layer_decay": 0.75,
    "milestones": (5,),
    "decay_rate": 0.5,
    "class_weights": "balanced",
    "freeze": 1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_resuming_with_another_setting_is_refused(name: str) -> None:
    saved = settings().model_dump(mode="json")
    settings().check_same(saved)
    with pytest.raises(TrainingError, match=f"--{name.replace('_', '-')}"):
        settings(**{name: CHANGES[name]}).check_same(saved)
    settings(patience=3).check_same(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "some"}, "--freeze is 'some': a number of stages or all-but-head"),
        ({"freeze": -1}, "--freeze is -1"),
        ({"class_weights": "1,x"}, "--class-weights is '1,x': none, balanced, or positive numbers"),
        ({"class_weights": (0.0, 1.0)}, "--class-weights"),
        ({"layer_decay": 1.5}, "--layer-decay is 1.5"),
        ({"patience": 0}, "--patience is 0"),
        ({"betas": ("a", 1)}, "--betas is 'a'"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        settings(**changes)

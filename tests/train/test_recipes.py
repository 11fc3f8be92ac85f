"""Recipes: that they hold together, that what is given stands above them, and what is shown of them."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers
from training_toys import TINY_OPTIONS, call, write_npz
from typer.main import get_command_from_info
from typer.models import CommandInfo

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.commands import train as command
from edgemamba.train.fitting import SCHEDULERS
from edgemamba.train.recipes import list_recipes, load_recipe
from edgemamba.train.recipes.layers import explain_rate, lay_settings
from edgemamba.train.recipes.recipe import flat
from edgemamba.train.registry import list_models, model_entry
from edgemamba.train.settings import TrainingSettings

GIVEN = {"data": "data/", "checkpoint": "weights.pth"}
PUBLISHED = {
    "vim": "vim",
    "vmamba": "vmamba",
    "efficientvmamba": "efficientvmamba",
    "medmamba": "medmamba",
    "local_mamba": "local_mamba",
    "plain_mamba": "plain_mamba",
    "mambavision": "mambavision",
}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "stripes.npz", train=40)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_holds_together(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.title
    assert all(len(source) > 3 for source in recipe.sources)
    known = flat(TrainingSettings(model="", data="", out="").model_dump())
    for doubt in recipe.unverified:
        assert doubt.partition("@")[0] in {*known, "total_batch"}, doubt
    for model in [recipe.model] if recipe.model else ["vim_tiny", "medmamba_t", "mambavision_t"]:
        layers = lay_settings({**GIVEN, "model": model}, name)
        assert layers.settings.optimizer in list_optimizers()
        assert layers.settings.scheduler in SCHEDULERS
        assert layers.settings.recipe == name
        assert {layers.origin[field] for field in recipe.fields(model)} == {f"recipe {name}"}


@pytest.mark.parametrize(("name", "family"), PUBLISHED.items())
def test_every_family_has_its_recipe(name: str, family: str) -> None:
    """And the patterns of its variants are of models that there are."""
    recipe = load_recipe(name)
    assert recipe.model is not None
    assert model_entry(recipe.model).family == family
    assert recipe.total_batch
    for pattern in recipe.variants:
        assert list_models(pattern), pattern
        assert {model_entry(model).family for model in list_models(pattern)} == {family}


def test_figures_that_were_read_upstream() -> None:
    """Spot checks against the published scripts: effective peak on their eight GPUs, drop path, decay."""
    vim = {model: lay_settings({**GIVEN, "model": model}, "vim").settings for model in ("vim_tiny", "vim_small")}
    assert vim["vim_tiny"].peak_lr(8) == pytest.approx(1e-3)
    assert (vim["vim_tiny"].drop_path, vim["vim_tiny"].weight_decay) == (0.0, 0.1)
    assert vim["vim_small"].peak_lr(8) == pytest.approx(1e-3)
    assert (vim["vim_small"].drop_path, vim["vim_small"].weight_decay) == (0.05, 0.05)
    assert lay_settings(GIVEN, "vmamba").settings.peak_lr(8) == pytest.approx(1e-3)
    plain = {n: lay_settings({**GIVEN, "model": f"plain_mamba_l{n}"}, "plain_mamba").settings for n in (1, 2, 3)}
    assert [plain[n].drop_path for n in plain] == [0.2, 0.2, 0.4]
    assert [plain[n].clip_grad for n in plain] == [5.0, 1.0, 1.0]
    assert [plain[n].ema for n in plain] == [False, True, True]
    assert plain[1].peak_lr(8) == pytest.approx(2e-3)


def test_what_is_given_stands_above_the_recipe() -> None:
    given = {**GIVEN, "model": "vim_small", "weight_decay": 0.2, "augmentation.hflip": 0.0}
    layers = lay_settings(given, "vim")
    assert layers.settings.weight_decay == 0.2
    assert layers.settings.augmentation.hflip == 0.0
    assert layers.settings.augmentation.random_erasing == 0.25
    assert layers.origin["weight_decay"] == layers.origin["augmentation.hflip"] == "command line"
    assert layers.origin["drop_path"] == "recipe vim"
    assert layers.origin["monitor"] == "default"


def test_a_rate_that_is_given_is_not_scaled() -> None:
    assert lay_settings({**GIVEN, "lr": 3e-4}, "vim").settings.peak_lr(8) == 3e-4
    assert lay_settings({**GIVEN, "lr": 3e-4, "lr_batch": 256}, "vim").settings.peak_lr(4) == pytest.approx(6e-4)


def test_another_optimiser_brings_its_own_betas() -> None:
    settings = lay_settings({**GIVEN, "optimizer": "sgd"}, "vmamba").settings
    assert (settings.betas, settings.opt_eps) == (None, None)


def test_the_rule_of_the_rate_is_told() -> None:
    line = explain_rate(lay_settings({**GIVEN, "batch_size": 64}, "vim").settings, 1)
    assert line == "learning rate 6.25e-05: 0.0005 for 512 pictures, scaled linearly to the 64 of an update"
    line = explain_rate(lay_settings(GIVEN, "local_mamba").settings, 1)
    assert line is not None
    assert "has it for 1024 pictures and names no rule for the 128 of an update here" in line
    assert explain_rate(lay_settings(GIVEN, "local_mamba").settings, 8) is None
    assert explain_rate(lay_settings({**GIVEN, "lr": 1e-4}, "local_mamba").settings, 1) is None
    assert explain_rate(lay_settings({**GIVEN, "model": "vim_tiny"}).settings, 1) is None


def test_doubts_are_of_the_models_that_they_concern() -> None:
    recipe = load_recipe("vim")
    assert "drop_path" in recipe.doubts("vim_base")
    assert "drop_path" not in recipe.doubts("vim_tiny")
    assert "augmentation.crop_scale" in recipe.doubts("vim_tiny")


@pytest.mark.parametrize(
    ("given", "recipe", "message"),
    [
        ({}, None, "--model is needed"),
        ({}, "finetune", "--model is needed"),
        ({"model": "vim_tiny"}, "finetune", "begins with trained weights: name them with --checkpoint"),
        ({}, "vmambo", "--recipe vmambo is not known; nearest: vmamba"),
        ({}, "nowhere.yaml", "--recipe nowhere.yaml cannot be read: No such file"),
    ],
)
def test_what_a_recipe_needs(given: dict[str, Any], recipe: str | None, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        lay_settings(given, recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "is no YAML.* in line 1"),
        ("just words", "is no recipe: title, sources and settings are needed"),
        ("title: x\nsources: [mine]\nsettings: {learning_rate: 1}", "there is no setting 'learning_rate'"),
        ("title: x\nsources: [mine]\nsettings: {epoch: 1}", "there is no setting 'epoch'; did you mean epochs"),
        ("title: x\nsources: [mine]\nsettings: {augmentation: {flip: 1}}", "there is no setting 'augmentation.flip'"),
        ("title: x\nsources: [mine]\nsettings: {out: /etc}", "there is no setting 'out'"),
        ("title: x\nsources: []\nsettings: {}", "sources: "),
        ("title: x\nsettings: {}", "sources: Field required"),
        ("title: x\nsources: [mine]\nsettings: {}\ncode: !!python/object/apply:os.system [ls]", "is no YAML"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_recipes_lie_beside_the_code() -> None:
    """They are data of the package, found without its source tree."""
    found = {file.name for file in files("edgemamba.train.recipes").iterdir()}
    assert {f"{name}.yaml" for name in list_recipes()} <= found
    assert len(list_recipes()) >= 9


def test_defaults_of_the_options_are_those_of_the_settings() -> None:
    """--help shows the former, and a run without options has the latter."""
    described = get_command_from_info(
        CommandInfo(name="train", callback=command.train), pretty_exceptions_short=False, rich_markup_mode=None
    )
    defaults = flat(TrainingSettings(model="", data="", out="").model_dump())
    for option in described.params:
        if option.name is None or option.name in {*command._NO_FIELDS, "help", "model", "data", "out", "set_"}:
            continue
        field = command._FIELDS.get(option.name, option.name)
        assert field in defaults, option.name
        assert option.default == defaults[field], option.name


def test_print_settings(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", "vim", "--model", "vim_small", "--lr", "1e-4", "--betas", "0.9,0.95", "--print-settings"]
    assert call("train", *arguments, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["settings"]["drop_path"] == 0.05
    assert shown["settings"]["betas"] == [0.9, 0.95]
    assert shown["origin"]["lr"] == "command line"
    assert shown["recipe"]["sources"]
    assert call("train", *arguments) == 0
    table = capsys.readouterr().out
    assert "recipe vim, not verified" in table
    assert "source: hustvl/Vim" in table
    assert "not done here: repeated augmentation" in table


def test_list_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--list-recipes", "--json") == 0
    assert [recipe["name"] for recipe in json.loads(capsys.readouterr().out)] == list_recipes()
    assert call("train", "--list-recipes") == 0
    assert "mambavision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "medical"], "--model is needed"),
        (["--recipe", "vim"], "--data is needed"),
        (["--recipe", "vim", "--betas", "0.9"], "--betas is '0.9'; 2 numbers with ',' between them are needed"),
        (["--recipe", "vim", "--fold", "2"], "--fold is '2'; 2 numbers with '/'"),
        (["--recipe", "vim", "--milestones", "a"], "--milestones is 'a'"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert call("train", *options) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("edgemamba: error: ")
    assert message in line


def test_a_run_with_a_recipe_of_ones_own(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it sets is what the run was done with, and its config.json says so."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "title: mine\nsources: [mine]\nsettings: {optimizer: lamb, lr: 2.0e-3, lr_batch: 8, ema: false, epochs: 7}\n"
        "variants: {medmamba_*: {weight_decay: 0.3}}\n"
    )
    out = tmp_path / "run"
    assert call("train", "--recipe", mine, "--data", npz, "--out", out, *TINY_OPTIONS) == 0
    assert "learning rate 0.001: 0.002 for 8 pictures, scaled linearly to the 4" in capsys.readouterr().err
    config = json.loads((out / "config.json").read_text())
    assert (config["optimizer"], config["weight_decay"], config["ema"]) == ("lamb", 0.3, False)
    assert config["epochs"] == 1  # TINY_OPTIONS says so
    assert config["recipe"] == str(mine)
    groups = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}


@pytest.mark.parametrize("name", ["medical", "vim", "mambavision", "medmamba_medmnist"])
def test_recipes_train(npz: Path, tmp_path: Path, name: str) -> None:
    """One step of a small model, in full precision: the mixed one of some is for a GPU."""
    options = ["--recipe", name, "--data", npz, "--out", tmp_path / "run", "--precision", "32", *TINY_OPTIONS]
    assert call("train", *options) == 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()

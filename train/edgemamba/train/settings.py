"""The settings of a training run, and which of them must not change when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, field_validator

from edgemamba.runtime.errors import TrainingError
from edgemamba.runtime.whole_files import write_whole
from edgemamba.train.data.transforms import Augmentation

if TYPE_CHECKING:
    from typing_extensions import Self

Precision = Literal["32", "bf16-mixed", "16-mixed"]
Monitor = Literal["top1", "auc", "loss"]
Strategy = Literal["auto", "ddp", "fsdp"]
_Beta = Annotated[float, Field(ge=0, lt=1)]
#: What ``freeze`` is where only the classifier is trained.
ALL_BUT_HEAD: Literal["all-but-head"] = "all-but-head"


class RunSettings(BaseModel):
    """What runs of every task depend on, with what a task adds; written to ``config.json`` in its folder and into its checkpoints.

    Attributes:
        model: a registered name; ``config`` holds the fields of its configuration that differ from the registered ones.
        data: path of the data set; ``val_fraction`` is the share of its training part that is held out for validation.
        out: folder of the run.
        batch_size: of each device; ``accumulate`` batches make one update, as if they were one.
        optimizer: a name of timm's ``create_optimizer_v2``; ``betas`` and ``opt_eps`` where they are not its own.
        lr: the peak; for a total batch of ``lr_batch`` where that is given, see :meth:`peak_lr`.
        layer_decay: the rate of a layer is this much of the next one's; the classifier has the whole rate.
        scheduler: a name of timm's ``create_scheduler_v2``, stepped at every update; ``warmup_epochs`` of linear warm-up.
        milestones, decay_rate: epochs at which ``multistep`` multiplies the rate, and by what.
        drop_path: stochastic depth of the model; None leaves the model's own.
        freeze: the stem and so many stages are not trained; :data:`ALL_BUT_HEAD` trains the classifier alone.
        ema: keep an exponential moving average of the weights; it is what is validated, and what is exported.
        patience: the run ends after so many epochs without a better one.
        strategy: of several devices: ``ddp`` (``auto`` too) keeps the whole model on each, ``fsdp`` a share of it.
        compile: translate the model with ``torch.compile``.
        checkpoint_minutes: save ``last.ckpt`` within an epoch when so much time has passed; 0 saves at ends of epochs only.
        limit_train_batches: stop each epoch after so many batches, for smoke tests.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    data: str
    out: str
    epochs: int = Field(default=100, ge=1)
    config: dict[str, Any] = Field(default_factory=dict)
    val_fraction: float | None = None
    batch_size: int = Field(default=64, ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimizer: str = "adamw"
    betas: tuple[_Beta, _Beta] | None = None
    opt_eps: float | None = Field(default=None, gt=0)
    lr: float = Field(default=5e-4, gt=0)
    lr_batch: int | None = Field(default=None, ge=1)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
    scheduler: str = "cosine"
    warmup_epochs: float = Field(default=5, ge=0)
    min_lr: float = Field(default=1e-5, ge=0)
    milestones: tuple[NonNegativeFloat, ...] | None = None
    decay_rate: float = Field(default=0.1, gt=0, le=1)
    clip_grad: float | None = Field(default=5.0, gt=0)
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    freeze: int | Literal["all-but-head"] | None = None
    ema: bool = True
    ema_decay: float = Field(default=0.9998, ge=0, lt=1)
    monitor: str
    patience: int | None = Field(default=None, ge=1)
    precision: Precision = "32"
    seed: int = Field(default=0, ge=0)
    checkpoint: str | None = None
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = Field(default=1, ge=1)
    strategy: Strategy = "auto"
    compile: bool = False
    checkpoint_minutes: float = Field(default=10, ge=0)
    workers: int = Field(default=2, ge=0)
    limit_train_batches: int | None = Field(default=None, ge=1)

    @field_validator("freeze", mode="before")
    @classmethod
    def _stages(cls, value: Any) -> Any:
        if value is None or value == ALL_BUT_HEAD or (str(value).isdecimal() and not isinstance(value, bool)):
            return value if value in (None, ALL_BUT_HEAD) else int(value)
        raise ValueError(f"a number of stages or {ALL_BUT_HEAD} is needed")

    @classmethod
    def parse(cls, **fields: Any) -> Self:
        """Build settings, with an error that names the field as the command line spells it.

        Raises:
            TrainingError: a value is out of range or of the wrong type.
        """
        try:
            settings = cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = [part for part in first["loc"] if isinstance(part, str)][-1]
            option = _OPTIONS.get(name, name).replace("_", "-")
            message = first["msg"].removeprefix("Value error, ")
            raise TrainingError(f"--{option} is {first['input']!r}: {message}") from None
        settings._check()
        return settings

    def _check(self) -> None:
        """Raise TrainingError where settings do not go together."""

    def peak_lr(self, ranks: int) -> float:
        """The peak of the learning rate when so many ranks train: ``lr``, scaled linearly from ``lr_batch`` (Goyal et al.,
        arXiv:1706.02677) to the pictures of one step."""
        return self.lr if self.lr_batch is None else self.lr * self.step_pictures(ranks) / self.lr_batch

    def step_pictures(self, ranks: int) -> int:
        """Pictures between two updates of the weights, on all ranks together."""
        return self.batch_size * self.accumulate * ranks

    @property
    def folder(self) -> Path:
        return Path(self.out)

    @property
    def checkpoints(self) -> Path:
        """The folder of ``last.ckpt`` and ``best.ckpt``."""
        return self.folder / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint that a run is resumed from."""
        return self.checkpoints / "last.ckpt"

    def write(self) -> None:
        """Write ``config.json``.

        Raises:
            TrainingError: the folder cannot be made or written to.
        """
        self.leave("config.json", self.model_dump(mode="json"))

    def leave(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder of the run, whole or not at all.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, (json.dumps(document, indent=2) + "\n").encode())
        except OSError as error:
            raise TrainingError(f"--out {self.folder}: {name} cannot be written: {error.strerror}") from None

    def check_same(self, saved: dict[str, Any]) -> None:
        """Refuse to resume a run with settings that it was not started with.

        Raises:
            TrainingError: names the first setting that differs.
        """
        mine = self.model_dump(mode="json")
        for name, value in mine.items():
            if name not in _MAY_CHANGE and name in saved and saved[name] != value:
                option = _OPTIONS.get(name, name).replace("_", "-")
                raise TrainingError(
                    f"the checkpoint was trained with --{option} {saved[name]} and this run asks for {value}; resume with the "
                    f"same settings, or start a new run from its weights with --checkpoint"
                )


class TrainingSettings(RunSettings):
    """Settings of the training of a classifier.

    Attributes:
        recipe: where the settings came from, for the record; they are all here.
        fold: as in :func:`~edgemamba.train.data.open_dataset`, as ``val_fraction`` is.
        balanced: draw each class equally often in training, whatever its share of the pictures.
        cache: keep decoded pictures: ``none``, ``ram`` or a folder, of ``cache_gb`` (10^9 bytes) at most.
        strict_data: refuse data in which a picture or a patient lies in two parts, instead of a warning.
        image_size: (height, width) in pixels; None for the model's own.
        mixup, cutmix: alphas of timm's ``Mixup``; 0 is off.
        class_weights: of the loss: ``none``, ``balanced`` (the inverse of a class's share of the training pictures), or one
            number a class, in the order of their names.
        monitor: what ``best.ckpt`` is best in.
    """

    recipe: str | None = None
    fold: tuple[int, int] | None = None
    balanced: bool = False
    cache: str = "none"
    cache_gb: float = Field(default=8.0, gt=0)
    strict_data: bool = False
    image_size: tuple[int, int] | None = None
    augmentation: Augmentation = Augmentation()
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    monitor: Monitor = "top1"

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("none", "balanced"):
            value = value.split(",")
        if not isinstance(value, str):
            try:
                value = tuple(float(weight) for weight in value)
            except (TypeError, ValueError):
                value = ()
            if not value or not all(0 < weight < float("inf") for weight in value):
                raise ValueError("none, balanced, or positive numbers (1,2.5,1), one a class, are needed")
        return value

    def _check(self) -> None:
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise TrainingError(f"--batch-size is {self.batch_size}: mixup and cutmix pair pictures, make it even")


# How the command line calls fields whose names differ.
_OPTIONS = {"optimizer": "opt", "scheduler": "sched", "config": "set"}
# Where a run happens and how long it goes on; the trajectory does not depend on them (or, for epochs, by intention).
_MAY_CHANGE = frozenset(
    {
        "data",
        "cache",
        "cache_gb",
        "strict_data",
        "out",
        "epochs",
        "checkpoint",
        "compile",
        "checkpoint_minutes",
        "accelerator",
        "devices",
        "nodes",
        "workers",
        "limit_train_batches",
        "monitor",
        "patience",
    }
)

"""``export``: from a PyTorch backbone to a bundle on disk."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from pydantic import ValidationError
from torch import nn

from edgemamba.export import layers
from edgemamba.export.constant_sorts import fold_sorts
from edgemamba.export.deployment import INPUT, OUTPUT, Deployed, Recipe, deploy
from edgemamba.export.function import selective_scan_function
from edgemamba.export.half import to_float16
from edgemamba.export.instance_norm import spell_out_instance_norms
from edgemamba.export.rewriting import without_quadratic_rules
from edgemamba.export.simplification import simplify
from edgemamba.export.translation import onnxscript_version, translation_table
from edgemamba.export.volume_recipes import patch_of, volume_card
from edgemamba.export.writing import BundleWriter
from edgemamba.runtime import __version__
from edgemamba.runtime.bundle import Bundle, Manifest, ModelCard, SourceCard, TensorCard, timestamp
from edgemamba.runtime.errors import ExportError
from edgemamba.runtime.operator import OP_TYPE
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import VolumeCard

Precision = Literal["fp32", "fp16"]
Axis = Literal["batch", "height", "width"]

#: Opsets that the exporter, the function body and every runtime of DESIGN section 2 share.
OPSETS = range(18, 25)
_AXES: dict[str, int] = {"batch": 0, "height": 1, "width": 2}


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported; see :func:`export` for the meaning of each field."""

    image_size: tuple[int, ...]
    precision: Precision = "fp32"
    dynamic: tuple[Axis, ...] = ("batch",)
    opset: int = 20

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ExportError(
                f"opset {self.opset} is not supported; choose {OPSETS[0]} to {OPSETS[-1]} (20 suits every runtime)"
            )
        if self.precision not in ("fp32", "fp16"):
            raise ExportError(f"precision {self.precision!r} is not supported; choose fp32 or fp16")
        for axis in self.dynamic:
            if axis not in _AXES:
                raise ExportError(f"dynamic axis {axis!r} is not known; choose from: {', '.join(_AXES)}")
            if len(self.image_size) == 3 and axis != "batch":
                raise ExportError(f"dynamic axis {axis!r}: models of volumes take patches of one size")
        if min(self.image_size) < 1:
            raise ExportError(f"image size {self.image_size} is not positive")


def export(
    model: nn.Module,
    out: str | Path,
    *,
    image_size: int | tuple[int, ...] | None = None,
    volume: VolumeCard | None = None,
    precision: Precision = "fp32",
    dynamic: Sequence[Axis] = ("batch",),
    class_names: Sequence[str] = (),
    opset: int = 20,
    source: str | Path | SourceCard | None = None,
    weights: bool = True,
    force: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Write a bundle: one ONNX graph for every runtime, a manifest with digests, and the weights that `verify` starts from.

    Args:
        model: of :func:`edgemamba.train.create_model`; it is copied, and left as it is. Its ``task`` is ``classification``
            (where it states none) or ``segmentation``; it is one of volumes if ``config.img_size`` has three sides.
        out: the bundle's folder. It appears at once when all is written and checked; an interrupted export leaves nothing.
        image_size: height and width in pixels; by default the model's own preprocessing states it. Of volumes: depth, height
            and width of the patch, by default the card's or ``config.img_size``.
        volume: how a device makes the input of a model of volumes; by default ``model.volume``, where it is such a card.
        precision: ``fp32``, or ``fp16`` (what stays float32 is listed in :mod:`edgemamba.export.half`).
        dynamic: the axes of the input that may vary: ``batch``, ``height``, ``width``.
        class_names: one per logit; none is fine.
        opset: of the standard ONNX operators, 18 to 24.
        source: the checkpoint the weights came from, recorded by file name and SHA-256.
        weights: also write ``weights.safetensors``, the state dict that :func:`edgemamba.export.verify` holds the graph against.
        force: replace the bundle in ``out``. A folder that is no bundle is never replaced.
        progress: called with a few words before each step.

    Raises:
        ExportError: the options, the model and ``out`` do not go together; the message says which and why.
    """
    recipe: Recipe
    if volume is not None or patch_of(model) is not None:
        recipe = volume_card(model, volume, image_size)
        options = ExportOptions(recipe.patch, precision, tuple(dynamic), opset)
    else:
        recipe = _preprocessing(model, image_size)
        options = ExportOptions(recipe.size, precision, tuple(dynamic), opset)
    writer = BundleWriter(Path(out), force=force)
    deployed = deploy(model, recipe)
    names = tuple(class_names)
    # Known before the minutes that tracing may take, where the model says it; the graph has the last word.
    _check_names(names, getattr(model, "num_classes", None))

    progress("tracing the model")
    graph, shape = to_onnx(deployed, options)
    segmenter = len(shape) > 2
    _check_names(names, shape[1])

    progress("checking the graph")
    card = source if isinstance(source, SourceCard) or source is None else writer.source_card(Path(source))
    manifest = Manifest(
        model=ModelCard(name=_model_name(model), config=_config(model)),
        input=TensorCard(name=INPUT, dtype=deployed.dtype, shape=_input_shape(deployed, options)),
        outputs=(TensorCard(name=OUTPUT, dtype="float32", shape=_output_shape(shape[1], segmenter, options)),),
        task="segmentation" if segmenter else "classification",
        preprocessing=recipe if isinstance(recipe, Preprocessing) else None,
        volume=recipe if isinstance(recipe, VolumeCard) else None,
        class_names=names,
        precision=precision,
        opset=opset,
        tool_versions=tool_versions(),
        source=card,
        created=timestamp(),
        files={"model.onnx": "0" * 64},  # the writer replaces it
    )
    return writer.write(graph, manifest, deployed, weights=weights, progress=progress)


def _check_names(names: Sequence[str], num_classes: object) -> None:
    if names and isinstance(num_classes, int) and len(names) != num_classes:
        raise ExportError(f"{len(names)} class names were given for {num_classes} classes")


def to_onnx(deployed: Deployed, options: ExportOptions) -> tuple[onnx.ModelProto, tuple[int | str, ...]]:
    """The graph with its function, and the shape of the logits.

    The same model, options and tool versions give the same bytes.
    """
    model = _trace(deployed, options)
    with _quiet("onnxscript", "onnx_ir"):  # what cannot be folded stays as it is
        simplify(model)
        if fold_sorts(model):  # what stands on them can now be folded too
            simplify(model)
    layers.complete_scopes(model.graph)
    passes.TopologicalSortPass()(model)
    if options.precision == "fp16":
        to_float16(model)
    spell_out_instance_norms(model)
    layers.name_nodes(model.graph)
    outputs = layers.module_outputs(model.graph)
    layers.strip_metadata(model)
    layers.strip_prefix(model.graph)
    layers.record_module_outputs(model.graph, outputs)
    passes.NameFixPass()(model)
    model.producer_name, model.producer_version = "edgemamba", __version__
    model.graph.name = "edgemamba"

    shape = _checked(model.graph.outputs[0].shape, deployed, options)
    proto = ir.to_proto(model)
    if any(node.op_type == OP_TYPE for node in proto.graph.node):
        proto.functions.append(selective_scan_function(options.opset))
    return proto, shape


def _checked(shape: ir.Shape | None, deployed: Deployed, options: ExportOptions) -> tuple[int | str, ...]:
    """The logits' shape, where the model is a classifier or a segmenter at the input's resolution."""
    space = options.image_size
    found = () if shape is None else tuple(extent if isinstance(extent, int) else str(extent) for extent in shape)
    task = str(getattr(deployed.model, "task", "segmentation" if len(space) == 3 else "classification"))
    kinds = {"classification": 2, "segmentation": 2 + len(space)}
    if task not in kinds:
        raise ExportError(f"{_model_name(deployed.model)} is for {task}; known are {' and '.join(kinds)}")
    form = "(B, num_classes)" if task == "classification" else f"(B, num_classes, {', '.join(map(str, space))})"
    spoiled = any(isinstance(extent, int) and extent != side for extent, side in zip(found[2:], space, strict=False))
    if len(found) != kinds[task] or not isinstance(found[1], int) or spoiled:
        raise ExportError(f"the model's output is not {form} logits but {found or 'of unknown shape'}")
    return found


def _trace(deployed: Deployed, options: ExportOptions) -> ir.Model:
    """Run torch's exporter; what it cannot do becomes one line."""
    # Two frames: an example of one would let the exporter take a dynamic batch for a constant.
    batch = 2 if "batch" in options.dynamic else 1
    example = deployed.example(batch)
    dynamic: dict[int, Any] = {_AXES[axis]: axis for axis in options.dynamic}
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            _quiet("torch.onnx", "onnxscript", "onnx_ir", "torch"),
            without_quadratic_rules(),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                opset_version=options.opset,
                optimize=True,
                verbose=False,
                custom_translation_table=translation_table(),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: dynamic} if dynamic else None,
            )
    except Exception as error:
        axes = ", ".join(options.dynamic) or "none"
        size = "x".join(map(str, options.image_size))
        name = _model_name(deployed.model)
        raise ExportError(f"{name} cannot be exported at {size} with dynamic axes {axes}: {_reason(error)}") from error
    assert program is not None
    model: ir.Model = program.model
    if model.opset_imports.get("") != options.opset:
        raise ExportError(
            f"opset {options.opset} was asked for and torch {torch.__version__} wrote {model.opset_imports.get('')}"
        )
    return model


class _quiet:  # noqa: N801 - used as a statement
    """Silence loggers that report the exporter's internal retries; what matters is raised."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.CRITICAL)

    def __exit__(self, *exception: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """What was wrong: the deepest cause's first line (and the next, where it only announces it), without the exporter's advice."""
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__ or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _preprocessing(model: nn.Module, image_size: int | tuple[int, ...] | None) -> Preprocessing:
    recipe = getattr(model, "preprocessing", None)
    if not isinstance(recipe, Preprocessing):
        raise ExportError(f"{type(model).__name__} has no preprocessing; make it with edgemamba.train.create_model")
    if image_size is None:
        return recipe
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2:
        raise ExportError(f"{_model_name(model)} takes pictures; its image size is height and width, not {size}")
    try:
        return Preprocessing.model_validate({**recipe.model_dump(), "size": size})
    except ValidationError as error:
        raise ExportError(f"image {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _model_name(model: nn.Module) -> str:
    return str(getattr(model, "model_name", type(model).__name__))


def _config(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}


def _axis(axis: Axis, size: int, options: ExportOptions) -> int | str:
    return axis if axis in options.dynamic else size


def _input_shape(deployed: Deployed, options: ExportOptions) -> tuple[int | str, ...]:
    extents = deployed.extents()
    if len(options.image_size) == 3:
        return _axis("batch", 1, options), *extents
    return _axis("batch", 1, options), *_picture_space(options), extents[-1]


def _output_shape(num_classes: int | str, segmenter: bool, options: ExportOptions) -> tuple[int | str, ...]:
    shape = _axis("batch", 1, options), num_classes
    if not segmenter:
        return shape
    return *shape, *(options.image_size if len(options.image_size) == 3 else _picture_space(options))


def _picture_space(options: ExportOptions) -> tuple[int | str, int | str]:
    height, width = options.image_size
    return _axis("height", height, options), _axis("width", width, options)


def tool_versions() -> dict[str, str]:
    """Versions of everything that shaped the graph."""
    return {
        "edgemamba": __version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript_version(),
        "onnx_ir": ir.__version__,
        "numpy": np.__version__,
    }

"""The bundle: one folder with everything a device needs and everything an auditor asks for.

``manifest.json`` states what each file is and its SHA-256. Loading checks the schema, every path (none may leave the
folder) and every digest before anything in the folder is parsed or executed. Nothing in a bundle is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from edgemamba.runtime.errors import BundleError
from edgemamba.runtime.operator import DOMAIN, OP_TYPE, OP_VERSION
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import MOST_LABELS, VolumeCard
from edgemamba.runtime.whole_files import write_whole

MANIFEST = "manifest.json"
MODEL = "model.onnx"
#: The graph's weights, where they are too large to be inside it.
MODEL_DATA = "model.onnx.data"
WEIGHTS = "weights.safetensors"
#: The output: of a classifier (B, num_classes), of a segmenter (B, num_classes, and the input's axes of space).
LOGITS = "logits"

SCHEMA_VERSION = 1
# A manifest is text of a few kilobytes; anything far beyond that is not one.
_MANIFEST_LIMIT = 4 * 2**20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelCard(_Strict):
    """The architecture: a registered name and the configuration it was built with (see ``edgemamba.train.create_model``)."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)


class OperatorCard(_Strict):
    """Which version of which custom operator the graph uses."""

    domain: str = DOMAIN
    name: str = OP_TYPE
    version: int = OP_VERSION


class TensorCard(_Strict):
    """Name, dtype and shape of a graph input or output; a dimension that varies has a name instead of a number."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class SourceCard(_Strict):
    """The checkpoint the bundle was made from: its file name (no folders) and SHA-256."""

    file: str
    sha256: str


class ParitySummary(_Strict):
    """The last verification, in one line; the figures are in ``parity.json``."""

    passed: bool
    date: str
    max_abs_error: dict[str, float] = Field(default_factory=dict)


class EngineCard(_Strict):
    """An engine that `edgemamba build` made from the bundle's graph; its digest is in the manifest's ``files``.

    Attributes:
        file: its path in the bundle.
        version: of the library that built it; TensorRT and TensorRT-RTX load engines of exactly their own version.
        device: the GPU it was built on; empty where none was needed.
        compute_capabilities: what it runs on, as ``8.6``; empty: all that TensorRT-RTX serves by default.
        precision: of its arithmetic, where weaker than the graph's types.
        shapes: the input's smallest, best and largest shape (B, H, W, C).
        plugin: the plugin's file name; empty where the scan is the graph's own function.
        model_sha256: of the graph that it was built from.
        build_seconds: from parsing to the finished engine.
    """

    file: str
    backend: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    device: str = ""
    compute_capabilities: tuple[str, ...] = ()
    precision: Literal["fp32", "fp16", "bf16"]
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    plugin: str = ""
    plugin_sha256: str = ""
    model_sha256: str
    build_seconds: float
    created: str = ""


class Manifest(_Strict):
    """What a bundle is. ``files`` maps each file's path, relative to the folder, to its SHA-256.

    Either pictures go in, as ``preprocessing`` says, or volumes, as ``volume`` says.

    Attributes:
        task: a class for each picture, or (``segmentation``) for each pixel or voxel; class 0 is then the background.
    """

    schema_version: Literal[1] = 1
    model: ModelCard
    operator: OperatorCard = OperatorCard()
    input: TensorCard
    outputs: tuple[TensorCard, ...]
    task: Literal["classification", "segmentation"] = "classification"
    pictures: Preprocessing | None = Field(default=None, alias="preprocessing")
    volume: VolumeCard | None = None
    class_names: tuple[str, ...] = ()
    precision: Literal["fp32", "fp16"]
    opset: int
    tool_versions: dict[str, str] = Field(default_factory=dict)
    source: SourceCard | None = None
    created: str = ""
    files: dict[str, str]
    engines: tuple[EngineCard, ...] = ()
    parity: ParitySummary | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes an input.

        Raises:
            BundleError: the model's input is a volume.
        """
        if self.pictures is None:
            raise BundleError(
                f"{self.model.name} segments volumes, not pictures or video: `edgemamba run` with a CT or MR series or NIfTI"
            )
        return self.pictures

    @model_serializer(mode="wrap")
    def _as_written(self, standard: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a classifier's manifest does not need is left out of it, so that older installations read it."""
        written: dict[str, Any] = {}
        for key, value in standard(self).items():
            if (key in ("pictures", "volume") and value is None) or (key, value) == ("task", "classification"):
                continue
            written["preprocessing" if key == "pictures" else key] = value
        return written

    @field_validator("operator")
    @classmethod
    def _known_operator(cls, value: OperatorCard) -> OperatorCard:
        if (value.domain, value.name) != (DOMAIN, OP_TYPE) or value.version > OP_VERSION:
            raise ValueError(
                f"the graph needs operator {value.domain}::{value.name} version {value.version}; this installation "
                f"knows {DOMAIN}::{OP_TYPE} up to version {OP_VERSION}"
            )
        return value

    @field_validator("files")
    @classmethod
    def _inside(cls, value: dict[str, str]) -> dict[str, str]:
        for name, digest in value.items():
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise ValueError(f"the path {name!r} points outside the bundle's folder")
            if not name.isprintable():
                raise ValueError(f"{name!r} is not a file name")
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"the SHA-256 of {name!r} is not 64 hexadecimal digits")
        if MODEL not in value:
            raise ValueError(f"{MODEL} is not listed")
        return value

    @model_validator(mode="after")
    def _parts_agree(self) -> Manifest:
        """What the parts say of the same thing must be one thing, or an engine fails at the first frame, or misnames it."""
        if (self.pictures is None) == (self.volume is None):
            raise ValueError("one of preprocessing (of pictures) and volume is needed, and not both")
        self._input_agrees()
        if not self.outputs:
            raise ValueError("outputs: there is none")
        for engine in self.engines:
            if engine.file not in self.files:
                raise ValueError(f"engines: {engine.file} is not listed in files")
        for output in self.outputs:
            if output.name == LOGITS and len(output.shape) < 2:
                raise ValueError(f"outputs: {LOGITS} of shape {output.shape} has no axis of classes")
            if output.name == LOGITS and self.class_names and output.shape[1] != len(self.class_names):
                raise ValueError(f"class_names: {len(self.class_names)} names for {output.shape[1]} classes")
        if self.task == "segmentation":
            self._labels_agree()
        elif self.volume is not None:
            raise ValueError("task: a bundle of volumes is one of segmentation")
        return self

    def _input_agrees(self) -> None:
        shape, expected, dtype = self.input.shape, self._input_extents(), "float32"
        if self.pictures is not None:
            dtype = self.pictures.dtype
        fits = len(shape) == 1 + len(expected) and all(
            isinstance(extent, str) or extent == wanted for extent, wanted in zip(shape[1:], expected, strict=True)
        )
        if self.input.dtype != dtype or not fits:
            made = f"{dtype} (batch, {', '.join(map(str, expected))})"
            maker = "volume" if self.volume is not None else "preprocessing"
            raise ValueError(f"input: {self.input.dtype} {shape}, but the {maker} makes {made}")

    def _input_extents(self) -> tuple[int, ...]:
        """Of one element of the batch."""
        if self.volume is not None:
            return len(self.volume.modalities), *self.volume.patch
        recipe = self.preprocessing
        return *recipe.size, recipe.channels

    def _labels_agree(self) -> None:
        """A segmenter has logits for every pixel or voxel of its input, and names that are not given twice."""
        space = self.input.shape[2:] if self.volume is not None else self.input.shape[1:3]
        shape = next((output.shape for output in self.outputs if output.name == LOGITS), ())
        if shape[2:] != space or len(shape) < 2 or not isinstance(shape[1], int):
            raise ValueError(f"outputs: {LOGITS} of shape {shape} is no segmentation of an input {self.input.shape}")
        if not 2 <= shape[1] <= MOST_LABELS:
            raise ValueError(f"outputs: {shape[1]} classes; 2 to {MOST_LABELS} can be told apart in a mask")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names: a name is given twice")
        for name in self.volume.codes if self.volume is not None else ():
            if name not in self.class_names:
                raise ValueError(f"volume.codes: {name!r} is no class")


class Bundle:
    """A bundle on disk whose manifest and files have been checked."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, model={self.manifest.model.name!r}, precision={self.manifest.precision!r})"

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read and check a bundle.

        Raises:
            BundleError: the folder or its manifest is missing or malformed, a path leaves the folder, a file is missing, or
                a file's SHA-256 is not the manifest's.
        """
        folder = Path(path)
        if folder.name == MANIFEST and folder.is_file():
            folder = folder.parent
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder; a bundle is the folder that `edgemamba export` writes")
        bundle = cls(folder, read_manifest(folder))
        for name in bundle.manifest.files:
            bundle.file(name)
        return bundle

    def file(self, name: str) -> Path:
        """The path of a listed file, after its digest has been checked.

        Raises:
            BundleError: it is not listed, missing, outside the folder, or changed.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"{self.path}: {MANIFEST} lists no file {name!r}")
        path = self.path / name
        try:
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise BundleError(f"{self.path}: {name} is a link that points outside the bundle's folder")
            if not path.is_file():
                raise BundleError(f"{self.path}: {name} is listed in {MANIFEST} and missing")
            if sha256(path) != expected:
                raise BundleError(f"{self.path}: {name} was changed since the bundle was written (its SHA-256 differs)")
        except (OSError, RuntimeError) as error:  # no permission, a name too long, links in a circle
            raise BundleError(f"{self.path}: {name} cannot be read: {error}") from None
        return path

    def with_files(self, *names: str, **changes: Any) -> Bundle:
        """Record new or rewritten files, and any manifest fields given as keywords, in the manifest on disk."""
        files = dict(self.manifest.files)
        files.update({name: sha256(self.path / name) for name in names})
        manifest = Manifest.model_validate({**self.manifest.model_dump(), **changes, "files": files})
        write_manifest(self.path, manifest)
        return Bundle(self.path, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Parse and check ``manifest.json``.

    Raises:
        BundleError: it is missing, too large, not JSON, or breaks the schema; the message names the field.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} has no {MANIFEST}; a bundle is the folder that `edgemamba export` writes")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise BundleError(f"{path} is larger than {_MANIFEST_LIMIT} bytes: not a manifest")
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}; this edgemamba reads up to {SCHEMA_VERSION}: upgrade it"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        ours = first["msg"].removeprefix("Value error, ")
        where = ".".join(map(str, first["loc"])) or ("document" if ours == first["msg"] else "")
        message = " ".join(f"{where}: {ours}".removeprefix(": ").split())
        raise BundleError(f"{path}: {message}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` so that a reader sees the old one or the new one, never half of it."""
    write_whole(folder / MANIFEST, f"{manifest.model_dump_json(indent=2)}\n".encode())


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def timestamp() -> str:
    """Now, in UTC, to the second (ISO 8601)."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

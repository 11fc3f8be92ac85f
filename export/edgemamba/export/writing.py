"""Put a bundle on disk so that it is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
from safetensors.torch import save_file
from torch import nn

from edgemamba.export.checking import check
from edgemamba.export.deployment import Deployed
from edgemamba.export.external_weights import SINGLE_FILE_LIMIT, move_weights_out, weight_bytes
from edgemamba.runtime.bundle import (
    MANIFEST,
    MODEL,
    MODEL_DATA,
    WEIGHTS,
    Bundle,
    Manifest,
    SourceCard,
    sha256,
    write_manifest,
)
from edgemamba.runtime.errors import ExportError


class BundleWriter:
    """Writes into a hidden folder beside ``out`` and renames it when everything in it has been checked.

    Raises:
        ExportError: ``out`` exists and is not a bundle, or is one and ``force`` was not given, or cannot be written. Said
            before any work is done.
    """

    def __init__(self, out: Path, *, force: bool = False) -> None:
        self.out = out
        self.force = force
        self._refuse_to_overwrite()
        self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._hidden_folder().rmdir()
        except OSError as error:
            raise self._cannot(error) from None

    def _hidden_folder(self) -> Path:
        """A new folder beside ``out``, so that renaming it crosses no file system."""
        return Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", dir=self.out.parent))

    def _cannot(self, error: OSError) -> ExportError:
        return ExportError(f"{self.out} cannot be written: {error.strerror or error}")

    def _refuse_to_overwrite(self) -> None:
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise ExportError(f"{self.out} is a file; name a folder for the bundle")
        if not any(self.out.iterdir()):
            return
        if not (self.out / MANIFEST).is_file():
            raise ExportError(f"{self.out} is a folder with other things in it, and no bundle; choose another name")
        if not self.force:
            raise ExportError(f"{self.out} holds a bundle already; --force (force=True) replaces it")

    @staticmethod
    def source_card(checkpoint: Path) -> SourceCard:
        """Name and digest of the checkpoint; its folder is nobody's business."""
        return SourceCard(file=checkpoint.name, sha256=sha256(checkpoint))

    def write(
        self,
        graph: onnx.ModelProto,
        manifest: Manifest,
        deployed: Deployed,
        *,
        weights: bool,
        progress: Callable[[str], None],
    ) -> Bundle:
        """Check the graph, write all files, rename the folder into place and load it as any user would."""
        folder = self._hidden_folder()
        try:
            files = [MODEL]
            if weight_bytes(graph) > SINGLE_FILE_LIMIT:
                move_weights_out(graph, folder)
                files.append(MODEL_DATA)
            check(graph, deployed, folder)
            progress("writing the bundle")
            (folder / MODEL).write_bytes(graph.SerializeToString(deterministic=True))
            if weights:
                save_weights(deployed.model, folder / WEIGHTS)
                files.append(WEIGHTS)
            digests = {name: sha256(folder / name) for name in files}
            write_manifest(folder, Manifest.model_validate({**manifest.model_dump(), "files": digests}))
            mask = _umask()
            folder.chmod(0o777 & ~mask)
            for file in folder.iterdir():  # safetensors writes for the owner alone
                file.chmod(0o666 & ~mask)
            self._move_into_place(folder)
        except BaseException as error:  # an interrupt too must leave nothing behind
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise self._cannot(error) from None
            raise
        return Bundle.load(self.out)

    def _move_into_place(self, folder: Path) -> None:
        self._refuse_to_overwrite()  # someone else may have written there meanwhile
        if self.out.is_dir() and any(self.out.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.old.", dir=self.out.parent))
            self.out.rename(old / self.out.name)
            try:
                folder.rename(self.out)
            except BaseException:
                (old / self.out.name).rename(self.out)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            folder.rename(self.out)


def save_weights(model: nn.Module, path: Path) -> None:
    """A state dict as safetensors; tensors that share memory are written once each."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}, path)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and values of a state dict: identifies weights that came from no file."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""How a run is spread over devices and machines: torchrun, DDP and FSDP, and what a model needs for each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.model import Model
from edgemamba.train.settings import RunSettings


class Sharded(ModelParallelStrategy):
    """FSDP: every rank keeps a share of the weights, gradients and optimiser states, and gathers a block's weights when it
    is that block's turn (``torch.distributed.fsdp.fully_shard``). Checkpoints are whole, in one file.

    Lightning's ``FSDPStrategy`` stands on the older ``FullyShardedDataParallel``, which needs a GPU; ``fully_shard`` runs on
    CPUs (gloo) too.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        # "auto" would divide the tensors between the devices of a machine, and shard between machines only.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def shard(self, model: Model) -> None:
        """Divide a model's parameters between the ranks, in place: each of :func:`blocks` for itself, then the rest."""
        mesh = self.device_mesh["data_parallel"]
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        rest = super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        # Lightning hands back what it has not used; the moving average needs the weights too.
        whole = torch.load(checkpoint_path, mmap=True, map_location="cpu", weights_only=True)
        return {**rest, "state_dict": whole["state_dict"]}


def trainer_options(settings: RunSettings) -> dict[str, Any]:
    """Keywords of Lightning's ``Trainer`` for the devices, machines and strategy of a run.

    Under ``torchrun`` with devices ``auto`` its processes are the devices.

    Raises:
        TrainingError: torchrun started another number of processes than the settings ask for, or they do not go together.
    """
    if settings.strategy == "fsdp" and settings.compile:
        raise TrainingError(
            "--compile and --strategy fsdp do not go together; take --strategy ddp, or leave --compile out"
        )
    if settings.strategy == "fsdp" and settings.precision == "16-mixed":
        raise TrainingError("--strategy fsdp has no gradient scaling for --precision 16-mixed; take bf16-mixed or 32")
    devices, nodes = settings.devices, settings.nodes
    if torch.distributed.is_torchelastic_launched():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ["WORLD_SIZE"]) // local
        if devices == "auto":
            devices = str(local)
        if devices.isdecimal() and int(devices) != local:
            raise TrainingError(
                f"torchrun started {local} processes on this machine, and --devices asks for {devices}; leave --devices out"
            )
        if nodes not in (1, machines):
            raise TrainingError(
                f"torchrun started {machines} machines, and --nodes asks for {nodes}; leave --nodes out"
            )
        nodes = machines
    elif nodes > 1 and not SLURMEnvironment.detect() and "NODE_RANK" not in os.environ:
        # Lightning would wait for the others for ever.
        raise TrainingError(f"--nodes is {nodes}: start the run on every machine with torchrun (docs/training.md)")
    strategy: str | Strategy = Sharded() if settings.strategy == "fsdp" else settings.strategy
    return {"devices": devices, "num_nodes": nodes, "strategy": strategy}


def prepare(model: Model, strategy: Strategy, *, compiled: bool) -> None:
    """Make a model ready for a strategy's devices, in place and without another name for any of its tensors.

    Batch norms become :class:`torch.nn.SyncBatchNorm` on several GPUs, so that they see the batch of all; torch has none
    for CPUs, where each rank's see its own pictures.

    Raises:
        TrainingError: it is to be compiled for the CPU, and there is no C++ compiler.
    """
    if (
        compiled
        and strategy.root_device.type == "cpu"
        and shutil.which(compiler := os.environ.get("CXX", "g++")) is None
    ):
        raise TrainingError(
            f"--compile on the CPU needs a C++ compiler, and there is no {compiler}; install one, or set CXX"
        )
    if strategy.root_device.type == "cuda" and getattr(strategy, "world_size", 1) > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if isinstance(strategy, Sharded):
        strategy.shard(model)
    if compiled:
        model.compile()


def blocks(model: Model) -> list[nn.Module]:
    """The residual blocks of a backbone: the members of a stage, where it has some, or else the stage or layer itself."""
    assert isinstance(model, Backbone)  # runs of segmentation refuse FSDP
    found: list[nn.Module] = []
    for info in model.feature_info:
        stage = model.get_submodule(info["module"])
        members = getattr(stage, "blocks", None)
        found += list(members) if isinstance(members, (nn.ModuleList, nn.Sequential)) else [stage]
    return found


def gather(model: nn.Module) -> None:
    """Make a sharded model whole on every rank until :func:`release`; nothing for others.

    A sharded model's forward is a collective operation, and validation parts need not divide evenly between ranks.
    """
    for module in _sharded(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release(model: nn.Module) -> None:
    """Undo :func:`gather`."""
    for module in _sharded(model):
        # As fully_shard sets it: the root, which comes first, is needed again at the beginning of the backward pass.
        module.set_reshard_after_forward(module is not model, recurse=False)
        module.reshard()


def align_buffers(model: nn.Module, strategy: Strategy) -> None:
    """Give every rank the first one's buffers (the statistics of batch norms), which are the ones that checkpoints hold."""
    if getattr(strategy, "world_size", 1) > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():  # the others are scan orders, alike from the start, and counts
                torch.distributed.broadcast(buffer, src=0)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict; of a sharded one put together on the CPU of the first rank, and empty on the others."""
    if _sharded(model):
        return get_model_state_dict(model, options=_WHOLE)  # type: ignore[return-value]
    return model.state_dict()


def load_whole_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model, sharded or not, the tensors of a whole state dict, which every rank must hold."""
    if _sharded(model):
        set_model_state_dict(model, dict(state), options=_WHOLE)
    else:
        model.load_state_dict(state)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error is that of a collective operation with a rank that is gone. gloo's have no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

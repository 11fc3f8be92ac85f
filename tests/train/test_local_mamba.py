"""LocalMamba: other sizes and orders, refusals, tracing.

Numbers are in test_local_mamba_plain; what every family does (gradients, checkpointing, feature maps, classifiers) in
test_timm.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, export

from edgemamba.runtime.errors import ModelError, ScanArgumentError
from edgemamba.train import create_model
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.local_vim import LocalVim, LocalVimConfig
from edgemamba.train.models.local_vim_mixer import LocalMixer
from edgemamba.train.models.local_vmamba import LocalVMambaConfig
from edgemamba.train.models.position import AxialRotation, resize_grid
from edgemamba.train.registry import model_from_upstream_config

# Every kind of direction in two layers; with patches of 4 pixels, windows of 3 and 5 do not fit into the maps.
LAYERS = (("h", "v_flip", "w3", "w3_flip"), ("h_flip", "v", "w2", "w5"))
SMALL: dict[str, dict[str, Any]] = {
    "local_vim_t": {"patch_size": 4, "embed_dim": 16, "depth": 2, "directions": LAYERS},
    "local_vim_t_midcls": {"patch_size": 4, "embed_dim": 16, "depth": 2, "directions": LAYERS},
    "local_vim_t_search": {"patch_size": 4, "embed_dim": 16, "depth": 2},
    "local_vmamba_t": {"dims": (8, 16), "depths": (1, 1), "directions": LAYERS},
    "local_vmamba_t_search": {"dims": (8, 16), "depths": (1, 1)},
}


def small(name: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    return create_model(name, **({"img_size": 32, "num_classes": 3, "drop_path_rate": 0.0} | SMALL[name] | options))


def picture(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---- models


def test_directions_keep_parameters_of_their_own() -> None:
    mixer = LocalMixer(16, 4)
    storages = {mixer.get_parameter(f"A_log_{k}").untyped_storage().data_ptr() for k in range(4)}
    assert len(storages) == 4


def test_positions_and_rotations_are_resized_to_the_picture() -> None:
    model = small("local_vim_t").eval()
    assert isinstance(model, LocalVim)
    assert model.pos_embed is not None
    assert model.rope is not None
    x = picture(30, 45)  # 8 x 12 patches, with padding at the bottom and on the right
    padded = F.pad(x, (0, 3, 0, 2))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(padded), rtol=0, atol=0)
        features, maps = model.forward_intermediates(x)
        assert features.shape == (2, 96, 16)
        assert [tuple(y.shape) for y in maps] == [(2, 16, 8, 12)] * 2
        cos, sin = model.rope.tables((8, 12))
        torch.testing.assert_close(cos, resize_grid(model.rope.freqs_cos[None], (8, 8), (8, 12))[0])
        torch.testing.assert_close(sin, resize_grid(model.rope.freqs_sin[None], (8, 8), (8, 12))[0])
        own = model.rope.tables((8, 8))
    assert own[0] is not cos
    torch.testing.assert_close(own[0], model.rope.freqs_cos, rtol=0, atol=0)


def test_rotation_of_a_grid_that_is_not_square() -> None:
    wide, square = AxialRotation(8, (2, 4)), AxialRotation(8, 4)
    tokens = torch.randn(1, 8, 8)
    turned = wide(tokens)
    torch.testing.assert_close(turned.square().sum(), tokens.square().sum())
    # The second half of the channels turns by the column, of four in both.
    torch.testing.assert_close(wide.freqs_cos[:, 4:], square.freqs_cos[:8, 4:])
    assert not torch.equal(wide.freqs_cos[:, :4], square.freqs_cos[:8, :4])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_any_size_and_any_order(name: str) -> None:
    model = small(name).eval()
    with torch.inference_mode():
        assert model(picture(32, 48)).shape == (2, 3)
        if name.endswith("search"):
            with pytest.raises(ModelError, match="this model's layers need 8"):
                small(name, scan="column")
            return
        other = small(name, scan="column").eval()
        other.load_state_dict(model.state_dict())
        y, z = model(picture(32, 48)), other(picture(32, 48))
    assert z.shape == y.shape
    assert not torch.allclose(y, z)
    with pytest.raises(ScanArgumentError, match="'colum' is not known; nearest: column"):
        small(name, scan="colum")


@pytest.mark.parametrize("name", ["local_vim_t", "local_vmamba_t"])
def test_the_order_raster_is_the_local_walk_of_rows(name: str) -> None:
    rows = (("h", "v", "h_flip", "v_flip"),) * 2  # what "raster" extends to, on a square map
    model, other = small(name, directions=rows).eval(), small(name, scan="raster").eval()
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(other(picture(32, 32)), model(picture(32, 32)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("local_vim_t", {"depth": 3}, "directions are of 2 layers, the model has 3"),
        ("local_vim_t", {"directions": (("h", "w0"), ("h", "h"))}, "direction 'w0' is not known"),
        ("local_vim_t", {"directions": (("h",), ())}, "needs at least one"),
        ("local_vim_t", {"cls_token": "middle"}, "no row for a class token"),
        ("local_vim_t", {"embed_dim": 18}, "multiple of 4"),
        ("local_vim_t", {"img_size": 3}, "smaller than a patch"),
        ("local_vim_t", {"pool": "max"}, "pool is 'max'"),
        ("local_vmamba_t", {"depths": (2, 1)}, "directions are of 2 layers, the model has 3"),
        ("local_vmamba_t", {"depths": (1, 1, 1)}, "not of the same stages"),
        ("local_vmamba_t", {"img_size": 3}, "smaller than a patch"),
    ],
)
def test_options_that_make_no_model_are_refused(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        small(name, **options)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "cls is None"),
        ({"cls": "VSSM"}, "cls is 'VSSM'; one of local_vim.VisionMamba, local_vmamba.VSSM"),
        ({"cls": "local_vim.VisionMamba", "pt_hw_seq_len": 16}, "pt_hw_seq_len=16"),
        ({"cls": "local_vim.VisionMamba", "if_cls_token": True}, "with use_middle_cls_token only"),
        ({"cls": "local_vim.VisionMamba", "if_telepathic": True}, "not supported: if_telepathic"),
        ({"cls": "local_vmamba.VSSM", "ssm_act_layer": "gelu"}, "ssm_act_layer='gelu'"),
        ({"cls": "local_vmamba.VSSM", "norm_layer": "bn"}, "norm_layer='bn'"),
    ],
)
def test_upstream_flags_that_are_not_supported_are_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        model_from_upstream_config("local_mamba", config)


def test_upstream_flags_of_a_supernet() -> None:
    vim = {"cls": "local_vim.VisionMamba", "embed_dim": 16, "depth": 2, "rms_norm": True, "if_abs_pos_embed": True}
    vim |= {"bimamba_type": "none"}
    for directions in ({}, {"directions": None}, {"directions": [None, None]}):
        config = model_from_upstream_config("local_mamba", vim | directions).config
        assert isinstance(config, LocalVimConfig)
        assert (config.directions, config.rope, config.pool, config.norm) == (None, False, "last", "rms")
    vmamba = {"cls": "local_vmamba.VSSM", "dims": 8, "depths": [1, 1], "d_state": 5, "ssm_d_state": 4}
    vmamba |= {"mlp_ratio": 4.0, "norm_layer": "LN"}  # it takes the first, and has no MLPs
    config = model_from_upstream_config("local_mamba", vmamba).config
    assert isinstance(config, LocalVMambaConfig)
    assert (config.dims, config.directions, config.d_state) == ((8, 16), None, 4)


# ---- tracing


@pytest.mark.parametrize("name", sorted(SMALL))
def test_exported_with_symbolic_batch(name: str) -> None:
    model = small(name).eval()
    program = export(model, (picture(32, 32),), dynamic_shapes=({0: Dim.DYNAMIC},))
    x = picture(32, 32, batch=3)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["local_vim_t", "local_vim_t_midcls", "local_vmamba_t"])
def test_exported_with_symbolic_sizes(name: str) -> None:
    model = small(name).eval()
    sides = {2: Dim("height", min=16, max=512), 3: Dim("width", min=16, max=512)}
    program = export(model, (picture(32, 40),), dynamic_shapes=(sides,))
    for size in ((33, 47), (32, 32), (28, 40)):
        with torch.inference_mode():
            torch.testing.assert_close(program.module()(picture(*size)), model(picture(*size)), rtol=1e-5, atol=1e-6)

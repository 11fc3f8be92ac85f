"""``scan=``: every family trains and exports with other orders than its own, and refuses those that do not fit it."""

from __future__ import annotations

import pytest
import torch
from small_models import SIDE, SMALL, small_model
from torch import Tensor

from edgemamba.runtime.errors import ModelError, ScanArgumentError
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.vim import Vim, VimConfig
from edgemamba.train.scan_orders import list_orders

# Directions of the layers, in which the orders are needed.
DIRECTIONS = {name: 2 if name.startswith(("vim", "local")) else 4 for name in SMALL} | {"mambavision_t": 1}
# Orders of that many: one that sorts, one of windows, which where models pad do not fill every map, and another.
ORDERS = {
    1: ("hilbert", "column", "window2"),
    2: ("hilbert", "spiral", "window2"),
    4: ("hilbert", "window3", "atrous2"),
}
LOCAL = [name for name in SMALL if name.startswith("local")]  # of two directions a layer here
OPTIONS = [(name, scan) for name in SMALL for scan in ORDERS[DIRECTIONS[name]] if scan != small_model(name).config.scan]


def picture(batch: int = 2, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def spread(model: Backbone) -> Backbone:
    """Weights with which directions differ: those of a fresh model hardly do."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


@pytest.mark.parametrize(("name", "scan"), OPTIONS)
def test_every_family_trains_with_other_orders(name: str, scan: str) -> None:
    model = small_model(name, scan=scan).train()
    torch.nn.functional.cross_entropy(model(picture()), torch.tensor([0, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    own = spread(small_model(name))
    model.load_state_dict(own.state_dict())  # an order has no parameters
    x = picture().double()  # in which a difference is no rounding error
    with torch.inference_mode():
        y, z = model.eval().double()(x), own.double()(x)
    assert y.isfinite().all()
    assert not torch.allclose(y, z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_every_family_exports_with_another_order(name: str) -> None:
    # Windows where the family pads for them; in the others they are exported like any order.
    scan = "hilbert" if name in ("vim_tiny", "mambavision_t") else "window3"
    model = spread(small_model(name, scan=scan))
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=16)}}
    program = torch.export.export(model, (picture(2),), dynamic_shapes=batch)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(picture(3)), model(picture(3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vim_tiny", "vmamba_t", "local_vim_t_midcls", "plain_mamba_l1"])
def test_one_exported_program_serves_every_size(name: str) -> None:
    """With an order that sorts in the graph."""
    options = {"dynamic_img_size": True} if name == "vim_tiny" else {}
    model = spread(small_model(name, scan="hilbert", **options))
    axes = {i: torch.export.Dim(side, min=48, max=256) for i, side in ((2, "height"), (3, "width"))}
    program = torch.export.export(model, (picture(1, 64, 96),), dynamic_shapes={"x": axes})
    x = picture(1, 80, 64)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_orders_that_do_not_fit_are_refused_at_once(name: str) -> None:
    for scan in ("inter-slice", "slices4", "atrous3"):
        with pytest.raises(ModelError, match=f"scan '{scan}' "):
            small_model(name, scan=scan)
    with pytest.raises(ScanArgumentError, match="'hilbrt' is not known; nearest: hilbert"):
        small_model(name, scan="hilbrt")
    if DIRECTIONS[name] != 2:
        with pytest.raises(ModelError, match="scan 'bidirectional' "):
            small_model(name, scan="bidirectional")


@pytest.mark.parametrize("name", LOCAL)
def test_local_mamba_takes_no_order_in_parts(name: str) -> None:
    four = (("h", "h_flip", "v", "v_flip"),) * 4
    with pytest.raises(ModelError, match="'atrous2' visits only a part of the map"):
        small_model(name, scan="atrous2", directions=four)
    with pytest.raises(ModelError, match="'cross' has 4 direction"):
        small_model(name, scan="cross", directions=(("h", "v"), *four[1:]))


@pytest.mark.parametrize("name", LOCAL)
def test_windows_as_an_order_are_local_mambas_own(name: str) -> None:
    """Of three, which do not divide the map."""
    own = spread(small_model(name, directions=(("w3", "w3_flip"),) * 4))
    other = small_model(name, directions=(("h", "h_flip"),) * 4, scan="window3").eval()
    other.load_state_dict(own.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(other(picture(2, 64, 96)), own(picture(2, 64, 96)), rtol=1e-5, atol=1e-5)


# ---- Vim, whose class tokens are not of the map


@pytest.mark.parametrize(
    ("cls_token", "forward"),
    [
        # Patches 0 1 / 2 3 by columns are 0 2 1 3.
        ("none", [0, 2, 1, 3]),
        ("first", [0, 1, 3, 2, 4]),
        ("middle", [0, 3, 2, 1, 4]),
        ("double", [0, 1, 3, 2, 4, 5]),
    ],
)
def test_vim_meets_class_tokens_where_they_stand(cls_token: str, forward: list[int]) -> None:
    config = VimConfig(img_size=32, embed_dim=8, depth=1, cls_token=cls_token, scan="column")  # type: ignore[arg-type]
    seen: list[Tensor] = []
    model = Vim(config).eval()
    model.layers[0].mixer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    with torch.inference_mode():
        model(picture(1, 32, 32))
    assert seen[0].tolist() == [forward, forward[::-1]]


@pytest.mark.parametrize("cls_token", ["none", "first", "middle", "double"])
def test_vim_by_raster_is_vim(cls_token: str) -> None:
    own, other = (
        small_model("vim_tiny", cls_token=cls_token, scan=scan).eval() for scan in ("bidirectional", "raster")
    )
    spread(own)
    other.load_state_dict(own.state_dict())
    with torch.inference_mode():
        assert torch.equal(own(picture()), other(picture()))


def test_vim_takes_windows_that_divide_its_grid() -> None:
    with pytest.raises(ModelError, match=r"'window3' takes grids of multiples of 3.*the grid of patches is \(4, 4\)"):
        small_model("vim_tiny", scan="window3")
    with pytest.raises(ModelError, match="not dynamic_img_size"):
        small_model("vim_tiny", scan="window2", dynamic_img_size=True)


def test_every_order_of_maps_fits_some_family() -> None:
    taken = set()
    for order in list_orders():
        for name in ("vim_tiny", "vmamba_t"):
            try:
                small_model(name, scan=order.name)
            except ModelError:
                continue
            taken.add(order.name)
    assert {order.name for order in list_orders() if order.axes != 3} <= taken

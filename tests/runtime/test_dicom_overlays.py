"""Overlay planes: not drawn unless asked for, then as dcmtk draws them; damaged ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import need, run
from runtime.made_dicom import grey, save

from edgemamba.runtime import open_source
from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError

pytest.importorskip("pydicom")
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

WHITE = 65535


def overlaid(plane: NDArray[Any], *, frames: int = 1, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Any:
    """Black pictures with an overlay plane (H, W) or (frames, H, W) in group 6000."""
    dataset = grey(
        np.zeros((frames, 6, 5) if frames > 1 else (6, 5), np.uint16), syntax, WindowCenter=10, WindowWidth=5
    )
    dataset.add_new(0x60000010, "US", plane.shape[-2])
    dataset.add_new(0x60000011, "US", plane.shape[-1])
    dataset.add_new(0x60000050, "SS", elements.get("origin", [1, 1]))
    if plane.ndim == 3:
        dataset.add_new(0x60000015, "IS", len(plane))
    if "first" in elements:
        dataset.add_new(0x60000051, "US", elements["first"])
    bits = np.packbits(plane.astype(np.uint8).ravel(), bitorder="little").tobytes()
    bits += bytes(len(bits) % 2)
    if syntax == ExplicitVRBigEndian:  # words of 16 bits
        bits = np.frombuffer(bits, "<u2").astype(">u2").tobytes()
    dataset.add_new(0x60003000, "OW", elements.get("data", bits))
    return dataset


def drawn(path: Path, index: int = 0) -> NDArray[np.bool_]:
    with DicomImage(path, overlays=True) as image:
        pixels = image.frame(index)[..., 0]
    assert set(np.unique(pixels)) <= {0, WHITE}
    return np.asarray(pixels == WHITE)


def test_as_dcmtk_draws_them(tmp_path: Path) -> None:
    need("dcm2pnm")
    path = dicom_file("examples_overlay.dcm")
    theirs = []
    for option in (["-O"], ["+O", "1", "+Omc"]):  # complement: each pixel of the plane changes
        written = run("dcm2pnm", "-W", "+Pid", *option, "+opb", path).stdout.partition("255\n")[2]
        theirs.append(np.array(written.split(), np.int64).reshape(300, 484))
    plane = theirs[0] != theirs[1]
    assert plane.sum() > 100
    with DicomImage(path) as plain, DicomImage(path, overlays=True) as with_them:
        left_out, shown = plain.frame(0)[..., 0], with_them.frame(0)[..., 0]
    assert (shown == np.where(plane, WHITE, left_out)).all()


def test_off_by_default_and_on_by_uri(tmp_path: Path) -> None:
    plane = np.eye(6, 5, dtype=bool)
    path = save(overlaid(plane), tmp_path)
    for name, expected in ((path, False), (f"dicom://{path}", False), (f"dicom://{path}?overlays=1", True)):
        with open_source(name) as source:
            (frame,) = source
        assert ((frame.pixels[..., 0] == WHITE) == (plane & expected)).all()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_odd_sizes_in_both_byte_orders(syntax: str, tmp_path: Path) -> None:
    plane = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(bool)
    assert (drawn(save(overlaid(plane, syntax=syntax), tmp_path)) == plane).all()


@pytest.mark.parametrize(
    ("origin", "expected"), [([3, 2], (2, 1)), ([-1, 0], (-2, -1)), ([7, 1], (6, 0)), ([-9, 1], (-10, 0))]
)
def test_origin(origin: list[int], expected: tuple[int, int], tmp_path: Path) -> None:
    """From 1; what lies beyond the picture is not drawn."""
    plane = np.ones((3, 4), bool)
    wanted = np.zeros((6, 5), bool)
    for row in range(3):
        for column in range(4):
            y, x = row + expected[0], column + expected[1]
            if 0 <= y < 6 and 0 <= x < 5:
                wanted[y, x] = True
    assert (drawn(save(overlaid(plane, origin=origin), tmp_path)) == wanted).all()


def test_frames(tmp_path: Path) -> None:
    planes = np.random.default_rng(1).integers(0, 2, (2, 6, 5)).astype(bool)
    path = save(overlaid(planes, frames=4, first=2), tmp_path)
    nothing = np.zeros((6, 5), bool)
    for index, expected in enumerate((nothing, *planes, nothing)):
        assert (drawn(path, index) == expected).all()
    path = save(overlaid(planes[0], frames=3), tmp_path)  # without a frame of its own it belongs to all
    assert all((drawn(path, index) == planes[0]).all() for index in range(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": b"\0\0"}, r"overlay \(6000,3000\) is cut short"),
        ({"rows": 65535, "columns": 65535}, r"overlay \(6000,3000\) is 65535 x 65535"),
        ({"origin": [1, 1, 1]}, r"overlay \(6000,3000\) is damaged"),
    ],
)
def test_damaged(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    dataset = overlaid(np.ones((6, 5), bool), **{k: v for k, v in change.items() if k in ("data", "origin")})
    for element, name in ((0x60000010, "rows"), (0x60000011, "columns")):
        if name in change:
            dataset[element].value = change[name]
    with DicomImage(save(dataset, tmp_path), overlays=True) as image, pytest.raises(SourceError, match=message):
        image.frame(0)

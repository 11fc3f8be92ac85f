"""DICOM files of many frames: their clock, any frame of them by itself, in the memory of one frame."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.bundled_dicom import dicom_file
from runtime.made_dicom import grey, save

from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError

pydicom = pytest.importorskip("pydicom")
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.pixels import convert_color_space, pixel_array  # noqa: E402
from pydicom.uid import JPEG2000Lossless  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_warnings")


def test_cine_times(tmp_path: Path) -> None:
    stored = np.zeros((4, 2, 2), np.uint8)
    cases: list[tuple[dict[str, Any], list[float | None]]] = [
        ({"FrameTime": "40"}, [0, 0.04, 0.08, 0.12]),
        ({"CineRate": 20}, [0, 0.05, 0.10, 0.15]),
        ({"FrameTimeVector": ["0", "10", "30", "5"]}, [0, 0.01, 0.04, 0.045]),
        ({}, [None] * 4),
        ({"FrameTime": "0"}, [None] * 4),
    ]
    for elements, times in cases:
        with DicomImage(save(grey(stored, **elements), tmp_path)) as image:
            measured = [image.timestamp(i) for i in range(4)]
            assert measured == pytest.approx(times)
            assert (image.fps is None) == (times[1] is None)


@pytest.mark.parametrize("table", [True, False])
def test_any_frame_of_a_compressed_cine(table: bool, tmp_path: Path) -> None:
    """With and without a Basic Offset Table, and cut in the middle: whole frames stay readable."""
    dataset = pydicom.dcmread(dicom_file("examples_ybr_color.dcm"))
    frames = list(generate_frames(dataset.PixelData, number_of_frames=30))
    dataset.PixelData = encapsulate(frames, has_bot=table)
    path = save(dataset, tmp_path)
    everything = pixel_array(dataset, raw=True)
    with DicomImage(path) as image:
        assert len(image) == 30
        assert image.fps == pytest.approx(30, rel=1e-3)
        for index in (29, 0, 17):
            difference = image.frame(index).astype(int) - convert_color_space(everything[index], "YBR_FULL_422", "RGB")
            assert np.abs(difference).max() <= 1
        with pytest.raises(IndexError):
            image.frame(30)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with DicomImage(cut) as image:
        image.frame(0)
        with pytest.raises(SourceError, match=r"frame 30 of 30: .*cut short"):
            image.frame(29)


def test_frames_in_several_fragments(tmp_path: Path) -> None:
    """More fragments than frames and no offset table: the codestreams' end markers divide them."""
    one = pydicom.dcmread(dicom_file("MR_small_jp2klossless.dcm"))
    codestream = next(generate_frames(one.PixelData, number_of_frames=1))
    dataset = grey(np.zeros((2, 64, 64), np.int16), WindowCenter=600, WindowWidth=1600)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([codestream, codestream], fragments_per_frame=3, has_bot=False)
    with DicomImage(save(dataset, tmp_path)) as image, DicomImage(dicom_file("MR_small_jp2klossless.dcm")) as single:
        assert (image.frame(0) == single.frame(0)).all()
        assert (image.frame(1) == single.frame(0)).all()


def test_extended_offset_table(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(dicom_file("rtdose_rle.dcm"))
    frames = list(generate_frames(dataset.PixelData, number_of_frames=15))
    value, offsets, lengths = pydicom.encaps.encapsulate_extended(frames)
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = value, offsets, lengths
    with DicomImage(save(dataset, tmp_path)) as image, DicomImage(dicom_file("rtdose_rle.dcm")) as plain:
        assert all((image.frame(i) == plain.frame(i)).all() for i in range(15))


def test_memory_is_one_frame(tmp_path: Path) -> None:
    """Reading one frame of a large native cine must not read the others."""
    stored = np.arange(200, dtype=np.uint16)[:, None, None] + np.zeros((1, 128, 128), np.uint16)
    path = save(grey(stored), tmp_path)
    with DicomImage(path, "full") as image:
        reads: list[int] = []
        image._file = _Counting(path.read_bytes(), reads)  # type: ignore[assignment]
        assert image.frame(150)[0, 0, 0] == 150
    assert sum(reads) == 128 * 128 * 2


class _Counting(io.BytesIO):
    """Notes how many bytes are read."""

    def __init__(self, data: bytes, reads: list[int]) -> None:
        super().__init__(data)
        self.reads = reads

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.reads.append(len(data))
        return data


def test_truncated_native_cine_keeps_its_whole_frames(tmp_path: Path) -> None:
    path = save(grey(np.ones((10, 16, 16), np.uint16)), tmp_path)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[:-700])
    with DicomImage(cut) as image:
        image.frame(8 - 1)
        with pytest.raises(SourceError, match=r"frame 10 of 10: .*cut short: 4420 bytes of 5120"):
            image.frame(9)

"""DICOM bombs: small files that ask for much memory are refused by name, in little memory, and their neighbours are read."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime.bundled_dicom import dicom_file

from edgemamba.runtime import dicom_files, dicom_fragments, open_source
from edgemamba.runtime.dicom_codestreams import promised_size
from edgemamba.runtime.dicom_pixels import DicomImage
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.memory import peak_bytes, reset_peak

pydicom = pytest.importorskip("pydicom")
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian  # noqa: E402

INFLATED_LIMIT = 32 << 20
FRAGMENTS_LIMIT = 5000
# None of the bombs asks for less than four times this.
MOST_GROWTH = 150 << 20


def bundled(name: str) -> bytes:
    return dicom_file(name).read_bytes()


def saved(dataset: pydicom.Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def deflate_bomb() -> bytes:
    """600 MiB of black in 600 KB."""
    dataset = pydicom.dcmread(io.BytesIO(bundled("CT_small.dcm")))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    del dataset.PixelData
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1024, 1024, 300
    content = saved(dataset)
    plain = pydicom.dcmread(io.BytesIO(content))
    plain.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    end_of_meta = 132 + 12 + plain.file_meta.FileMetaInformationGroupLength
    elements = zlib.decompress(content[end_of_meta:], -zlib.MAX_WBITS)
    deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 600 << 20)
    parts = [deflater.compress(elements + pixels)]
    parts += [deflater.compress(bytes(1 << 20)) for _ in range(600)]
    return content[:end_of_meta] + b"".join(parts) + deflater.flush()


def codestream_bomb() -> bytes:
    """A JPEG 2000 codestream of 60000 x 60000 behind a header of 1024 x 256."""
    dataset = pydicom.dcmread(io.BytesIO(bundled("JPEG2000.dcm")))
    codestream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    at = codestream.index(b"\xff\x4f\xff\x51") + 8
    codestream[at : at + 8] = struct.pack(">LL", 60000, 60000)  # the size
    codestream[at + 16 : at + 24] = struct.pack(">LL", 60000, 60000)  # in one tile
    dataset.PixelData = encapsulate([bytes(codestream)])
    return saved(dataset)


def frame_bomb() -> bytes:
    """A picture of 65535 x 65535 in a run-length code."""
    dataset = pydicom.dcmread(io.BytesIO(bundled("MR_small_RLE.dcm")))
    dataset.Rows = dataset.Columns = 65535
    return saved(dataset)


def fragments_bomb() -> bytes:
    """A fragment of no bytes, many times."""
    dataset = pydicom.dcmread(io.BytesIO(bundled("MR_small_RLE.dcm")))
    dataset.PixelData = encapsulate([b"\0\0"]) + b"\xfe\xff\x00\xe0\0\0\0\0" * (FRAGMENTS_LIMIT + 1)
    return saved(dataset)


def offsets_bomb() -> bytes:
    """A Basic Offset Table longer than any file's."""
    content = bundled("MR_small_RLE.dcm")
    at = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00"))
    return content[: at + 4] + struct.pack("<L", 0x7FFFFFF0) + content[at + 8 :]


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflate.dcm": (deflate_bomb, "inflates to more than 32 MiB"),
    "codestream.dcm": (
        codestream_bomb,
        r"compressed picture is 60000 x 60000 with 1 components, and .* say 256 x 1024",
    ),
    "frame.dcm": (frame_bomb, "one frame would take 8191 MiB; frames up to 256 MiB are read"),
    "fragments.dcm": (fragments_bomb, "in more than 5000 fragments"),
    "offsets.dcm": (offsets_bomb, "in more than 5000 fragments"),
}


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than the real ones, so that the bombs are small too."""
    monkeypatch.setattr(dicom_files, "LARGEST_INFLATED", INFLATED_LIMIT)
    monkeypatch.setattr(dicom_fragments, "MOST_FRAGMENTS", FRAGMENTS_LIMIT)


def peak_growth(action: Callable[[], object]) -> int:
    """By how many bytes the process grew at most meanwhile."""
    if not reset_peak():
        pytest.skip("the system does not let the peak be reset")
    before = peak_bytes()
    assert before is not None
    action()
    after = peak_bytes()
    assert after is not None
    return after - before


def read(path: Path) -> None:
    with DicomImage(path) as image:
        image.frame(0)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    make, reason = BOMBS[name]
    path = tmp_path / name
    path.write_bytes(make())
    assert path.stat().st_size < 4 << 20

    def refuse() -> None:
        for opened in (read, lambda path: list(open_source(f"dicom://{path.parent}"))):
            with pytest.raises(SourceError, match=reason) as caught:
                opened(path)
            assert name in str(caught.value)

    refuse()  # imports and buffers
    assert peak_growth(refuse) < MOST_GROWTH


def test_everything_else_goes_on(tmp_path: Path) -> None:
    for name, (make, _) in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    shutil.copy(dicom_file("CT_small.dcm"), tmp_path / "a.dcm")
    shutil.copy(dicom_file("MR_small_RLE.dcm"), tmp_path / "z.dcm")
    for argument in (tmp_path, f"dicom://{tmp_path}"):
        with open_source(argument) as source:
            assert [frame.source for frame in source] == ["a.dcm", "z.dcm"]
        assert source.skipped.count == len(BOMBS)
        assert sorted(BOMBS) == sorted(
            Path(reason.partition(" ")[0].rstrip(":")).name for reason in source.skipped.reasons
        )


def test_two_thousand_million_frames_take_no_memory(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(io.BytesIO(bundled("MR_small.dcm")))
    dataset.NumberOfFrames, dataset.FrameTime = 2**31 - 1, 40
    path = tmp_path / "cine.dcm"
    path.write_bytes(saved(dataset))

    def count() -> None:
        with open_source(path) as source:
            assert source.fps == 25
            assert len(list(source)) == 1
            assert source.skipped.count == 2**31 - 2

    count()
    assert peak_growth(count) < 16 << 20


@pytest.mark.parametrize("count", [b"1E+30 ", b"9999999999999999999999", b"1E999 ", b"-5"])
def test_impossible_numbers_of_frames(count: bytes, tmp_path: Path) -> None:
    content = bundled("CT_small.dcm")
    at = content.index(b"\x28\x00\x10\x00US")
    element = struct.pack("<HH2sH", 0x0028, 0x0008, b"IS", len(count)) + count
    (tmp_path / "a.dcm").write_bytes(content[:at] + element + content[at:])
    with pytest.raises(SourceError, match=r"Number of Frames is not a positive number|damaged"):
        list(open_source(tmp_path / "a.dcm"))


def test_an_element_longer_than_its_file(tmp_path: Path) -> None:
    """Of two gigabytes, in a file of one kilobyte."""
    content = bundled("CT_small.dcm")
    at = content.index(b"\x08\x00\x60\x00CS")
    private = struct.pack("<HH2sHL", 0x0009, 0x1010, b"OB", 0, 0x7FFFFFFE)
    path = tmp_path / "long.dcm"
    path.write_bytes(content[:at] + private + content[at : at + 500])

    def refuse() -> None:
        with pytest.raises(SourceError, match=r"long\.dcm: "):
            read(path)

    refuse()
    assert peak_growth(refuse) < 16 << 20


@pytest.mark.parametrize(
    "tag", [b"\x08\x00\x60\x00CS", b"\x28\x00\x30\x00DS", b"\x20\x00\x32\x00DS", b"\x28\x00\x02\x01US"]
)
def test_a_damaged_element_that_no_pixel_needs_costs_no_frame(tag: bytes, tmp_path: Path) -> None:
    """Modality, Pixel Spacing, Image Position, High Bit: of a value representation that does not exist. Found by the fuzz test."""
    content = bundled("MR_small_jp2klossless.dcm")
    at = content.index(tag)
    (tmp_path / "a.dcm").write_bytes(content[: at + 5] + b"\0" + content[at + 6 :])
    (frame,) = open_source(tmp_path / "a.dcm")
    assert frame.pixels.shape == (64, 64, 1)
    assert frame.metadata["rows"] == 64


def test_a_deflated_file_within_the_limit_is_read(tmp_path: Path) -> None:
    read(dicom_file("image_dfl.dcm"))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MR_small_jp2klossless.dcm", (64, 64, 1)),
        ("MR_small_jpeg_ls_lossless.dcm", (64, 64, 1)),
        ("SC_rgb_small_odd_jpeg.dcm", (3, 3, 3)),
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", (100, 100, 3)),
    ],
)
def test_sizes_that_codestreams_promise(name: str, size: tuple[int, int, int]) -> None:
    dataset = pydicom.dcmread(io.BytesIO(bundled(name)))
    codestream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    assert promised_size(codestream) == size
    for length in range(0, min(len(codestream), 700), 7):
        assert promised_size(codestream[:length]) in (None, size)


@pytest.mark.parametrize("codestream", [b"", b"\xff\xd8\xff", b"RLE", b"\xff\xd8\x00\x00\x00\x00", b"\xff\x4f\xff\x51"])
def test_no_codestream(codestream: bytes) -> None:
    assert promised_size(codestream) is None

"""``edgemamba run`` with a bundle of volumes: masks as DICOM SEG, NIfTI and picture; what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime.volume_files import (
    LABELS,
    OBLIQUE,
    STEPS,
    affine_of,
    labels_of,
    shapes,
    threshold_bundle,
    write_enhanced,
    write_nifti,
    write_series,
)

from edgemamba.runtime.bundle import Bundle, read_manifest
from edgemamba.runtime.engines import load
from edgemamba.runtime.engines.ort import OrtEngine
from edgemamba.runtime.errors import BundleError, EngineError, SinkError
from edgemamba.runtime.volumes.card import Code, Normalisation, SegmentCodes, VolumeCard
from edgemamba.runtime.volumes.nifti import read_nifti, write_nifti_mask
from edgemamba.runtime.volumes.outputs import check_outputs
from edgemamba.runtime.volumes.overview import colours
from edgemamba.runtime.volumes.reading import read_volumes
from edgemamba.runtime.volumes.segmenting import segment

pydicom = pytest.importorskip("pydicom")
nib = pytest.importorskip("nibabel")
hd = pytest.importorskip("highdicom")
pytest.importorskip("onnxruntime")

Run = Callable[..., tuple[int, str, str]]
CARD = VolumeCard(
    modalities=("CT",),
    patch=(8, 16, 16),
    normalisation=(Normalisation(kind="none"),),
    codes={"ball": SegmentCodes(type=Code(value="10200004", meaning="Liver"))},
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("volumes") / "threshold", CARD)


def seg_labels(path: Path, slices: int, size: tuple[int, int], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The label map of a DICOM SEG, each frame put where its own position says."""
    dataset = pydicom.dcmread(path)
    labels = np.zeros((slices, *size), np.uint8)
    for pixels, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = [*group.PlanePositionSequence[0].ImagePositionPatient, 1.0]
        index = int(np.rint(np.linalg.solve(affine, position)[0]))
        labels[index][pixels > 0] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return labels


def dciodvfy(path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        return
    said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    errors = [line for line in said.stderr.splitlines() if line.startswith("Error")]
    assert not errors, errors


@pytest.mark.parametrize("oblique", [False, True], ids=["axial", "oblique"])
def test_a_series_becomes_every_kind_of_mask(oblique: bool, bundle: Path, run: Run, tmp_path: Path) -> None:
    values = shapes()
    expected = labels_of(values)
    cosines = {"cosines": OBLIQUE} if oblique else {}
    paths = write_series(tmp_path / "ct", values, **cosines)
    affine = affine_of(*cosines.values())
    outs = [tmp_path / "mask.seg.dcm", tmp_path / "mask.nii.gz", tmp_path / "look.png"]
    code, out, err = run(
        "--source", tmp_path / "ct", *(part for out in outs for part in ("-o", out)), "--json", bundle=bundle
    )
    assert code == 0, err
    report = json.loads(out)
    counts = np.bincount(expected.ravel())
    assert [(label["name"], label["voxels"]) for label in report["labels"]] == list(
        zip(LABELS[1:], counts[1:], strict=True)
    )
    for label, count in zip(report["labels"], counts[1:], strict=True):
        assert label["ml"] == pytest.approx(count * np.prod(STEPS) / 1000, rel=1e-4)
    assert report["windows"] > 1

    image = nib.load(outs[1])
    assert image.get_data_dtype() == np.uint8
    assert (np.asarray(image.dataobj).transpose(2, 1, 0) == expected).all()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    np.testing.assert_allclose(lps[:, [2, 1, 0, 3]], affine, atol=1e-4)

    seg = hd.seg.segread(outs[0])
    assert (seg_labels(outs[0], len(values), values.shape[1:], affine) == expected).all()
    assert [seg.get_segment_description(i).segment_label for i in (1, 2)] == list(LABELS[1:])
    assert seg.get_segment_description(1).segmented_property_type.value == "10200004"
    assert seg.get_segment_description(2).segmented_property_type.scheme_designator == "99EDGEMAMBA"
    assert seg.get_segment_description(1).algorithm_type.value == "AUTOMATIC"
    sources = {str(pydicom.dcmread(path).SOPInstanceUID) for path in paths}
    referenced = {
        str(item.ReferencedSOPInstanceUID) for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced == sources
    assert seg.FrameOfReferenceUID == pydicom.dcmread(paths[0]).FrameOfReferenceUID
    assert seg.DimensionOrganizationSequence
    dciodvfy(outs[0])

    picture = pytest.importorskip("cv2").imread(str(outs[2]))[..., ::-1]
    for colour in colours(2):  # in the legend, unmixed
        assert (picture == colour).all(axis=2).any()


def test_nifti_and_series_give_the_same_mask(bundle: Path, run: Run, tmp_path: Path) -> None:
    values = shapes()
    nifti = write_nifti(tmp_path / "ct.nii.gz", values)
    assert run("-s", nifti, "-o", tmp_path / "a.nii.gz", bundle=bundle)[0] == 0
    source, mask = nib.load(nifti), nib.load(tmp_path / "a.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
    assert (mask.header["sform_code"], mask.header["qform_code"]) == (
        source.header["sform_code"],
        source.header["qform_code"],
    )
    assert (np.asarray(mask.dataobj).transpose(2, 1, 0) == labels_of(values)).all()


@pytest.mark.parametrize("codes", [(4, 1), (0, 1), (2, 0), (0, 0)], ids=str)
def test_a_mask_states_its_place_as_its_source_does(codes: tuple[int, int], tmp_path: Path) -> None:
    """Programs differ in whether they believe the sform or the qform; the two may differ, as after a registration."""
    turned = np.diag([0.9, 1.0, 3.0, 1.0])
    turned[:3, :3] = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]]) @ turned[:3, :3]
    straight = np.diag([-0.9, 1.0, 3.0, 1.0])
    straight[:3, 3] = (50, -60, 9)
    image = nib.Nifti1Image(shapes(), turned if any(codes) else None)
    if any(codes):
        image.set_qform(straight, codes[1])
        image.set_sform(turned, codes[0])
    nib.save(image, tmp_path / "a.nii")
    read = read_nifti(tmp_path / "a.nii", 1)
    mask = np.zeros(read.grid.shape, np.uint8)
    write_nifti_mask(tmp_path / "m.nii", mask, read.grid, read.forms, flip_axes=False)
    source, made = nib.load(tmp_path / "a.nii"), nib.load(tmp_path / "m.nii")
    np.testing.assert_allclose(made.affine, source.affine, atol=1e-5)
    for form in ("get_sform", "get_qform"):
        wanted, got = (getattr(header, form)(coded=True) for header in (source.header, made.header))
        assert got[1] == wanted[1]
        if wanted[1]:
            np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)
    np.testing.assert_allclose(made.header.get_zooms(), source.header.get_zooms(), atol=1e-5)


def test_slices_of_no_stated_thickness(bundle: Path, run: Run, tmp_path: Path) -> None:
    """Slice Thickness may be empty in a series (type 2), and in no segmentation; readers refuse one that lacks it."""
    values = shapes()
    write_series(tmp_path / "ct", values, SliceThickness=None)
    code, _, err = run("-s", tmp_path / "ct", "-o", tmp_path / "m.seg.dcm", bundle=bundle)
    assert code == 0, err
    measures = hd.seg.segread(tmp_path / "m.seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == pytest.approx(STEPS[0])
    assert (seg_labels(tmp_path / "m.seg.dcm", len(values), values.shape[1:], affine_of()) == labels_of(values)).all()
    dciodvfy(tmp_path / "m.seg.dcm")


def test_an_enhanced_file_becomes_a_segmentation_of_its_frames(bundle: Path, run: Run, tmp_path: Path) -> None:
    values = shapes()
    source = write_enhanced(tmp_path / "enhanced.dcm", values)
    out = tmp_path / "mask.seg.dcm"
    code, _, err = run("-s", source, "-o", out, bundle=bundle)
    assert code == 0, err
    assert (seg_labels(out, len(values), values.shape[1:], affine_of()) == labels_of(values)).all()
    made = pydicom.dcmread(out)
    (instance,) = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID
    # A frame of the mask refers to the frame of the source that lies where it lies.
    original = pydicom.dcmread(source).PerFrameFunctionalGroupsSequence
    for group in made.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        number = reference.ReferencedFrameNumber
        there = original[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert list(there) == list(group.PlanePositionSequence[0].ImagePositionPatient)
    dciodvfy(out)


@pytest.mark.parametrize("include_phi", [False, True])
def test_the_patient_is_named_only_where_asked(include_phi: bool, bundle: Path, run: Run, tmp_path: Path) -> None:
    write_series(tmp_path / "ct", shapes())
    outs = [tmp_path / name for name in ("m.seg.dcm", "m.nii", "m.png")]
    arguments = [part for out in outs for part in ("-o", out)] + ["--json"] + ["--include-phi"] * include_phi
    code, out, err = run("-s", tmp_path / "ct", *arguments, bundle=bundle)
    assert code == 0, err
    made = pydicom.dcmread(outs[0])
    if include_phi:
        assert (made.PatientName, made.PatientID, made.AccessionNumber) == (
            "Secret^Patient",
            "SECRET-ID",
            "SECRET-ACC",
        )
    else:
        assert made.PatientIdentityRemoved == "YES"
        assert made.ContentDate == "19000101"
        assert "InstanceCreationDate" not in made
        for path in outs:
            assert b"secret" not in path.read_bytes().lower()
    assert "secret" not in (out + err).lower()
    dciodvfy(outs[0])


def test_a_volume_smaller_than_the_patch_and_one_without_any_label(bundle: Path, run: Run, tmp_path: Path) -> None:
    values = shapes((4, 10, 9))
    write_series(tmp_path / "small", values)
    write_series(tmp_path / "empty", np.zeros((9, 20, 20), np.int16))
    assert run("-s", tmp_path / "small", "-o", tmp_path / "s.nii.gz", bundle=bundle)[0] == 0
    assert (np.asarray(nib.load(tmp_path / "s.nii.gz").dataobj).transpose(2, 1, 0) == labels_of(values)).all()
    code, _, err = run("-s", tmp_path / "empty", "-o", tmp_path / "e.seg.dcm", "-o", tmp_path / "e.png", bundle=bundle)
    assert code == 0, err
    assert not pydicom.dcmread(tmp_path / "e.seg.dcm").pixel_array.any()
    dciodvfy(tmp_path / "e.seg.dcm")


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "IAR"])
def test_another_spacing_and_orientation_change_borders_only(orientation: str, tmp_path: Path) -> None:
    values = shapes((16, 48, 40))
    write_series(tmp_path / "ct", values)
    card = CARD.model_copy(update={"spacing": (1.5, 1.5, 1.5), "orientation": orientation})
    with load(threshold_bundle(tmp_path / "b", card), "ort-function") as engine:
        result = segment(engine, read_volumes([str(tmp_path / "ct")], ("CT",)))
    assert sorted(result.shape) == sorted((32, 26, 29))
    expected = labels_of(values)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(expected, ((1, 1), (2, 2), (2, 2)), "edge"), (3, 5, 5))
    inside = around.max(axis=(3, 4, 5)) == around.min(axis=(3, 4, 5))
    assert (result.mask == expected)[inside].all()
    assert set(np.unique(expected[inside])) == {0, 1, 2}


def test_what_cannot_be_asked_of_a_bundle_of_volumes(bundle: Path, run: Run, tmp_path: Path) -> None:
    nifti = write_nifti(tmp_path / "ct.nii.gz", shapes())
    write_series(tmp_path / "ct", shapes())
    cases = [
        (["-s", nifti, "-o", tmp_path / "m.seg.dcm"], "not DICOM, to which a DICOM SEG could refer"),
        (["-s", nifti, "-o", tmp_path / "m.mp4"], r"written as DICOM SEG \(\.seg\.dcm\), NIfTI"),
        (["-s", nifti, "-o", nifti], "the source itself"),
        (["-s", tmp_path / "ct", "-o", tmp_path / "ct" / "m.seg.dcm"], "in its folder"),
        (["-s", nifti, "-o", bundle / "m.nii.gz"], "in the bundle"),
        (["-s", nifti, "-o", tmp_path / "absent" / "m.nii.gz"], "no folder"),
        (["-s", nifti, "-o", tmp_path / "m.nii", "-o", tmp_path / "m.nii"], "twice"),
        (["-s", nifti, "--web", "8080"], "written as DICOM SEG|goes with pictures"),
        (["-s", nifti, "--max-frames", "3"], "--max-frames goes with pictures"),
        (["-s", "0"], "no v4l2:// stream"),
        (["-s", nifti, "-s", nifti], "2 volumes are given; the model takes 1"),
    ]
    for arguments, words in cases:
        code, out, err = run(*arguments, bundle=bundle)
        assert code == 2, (arguments, err)
        assert "Traceback" not in err
        assert pytest.importorskip("re").search(words, " ".join(err.split())), (words, err)
        assert not out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "ct.nii.gz"]


def two_enhanced_files(folder: Path) -> None:
    first, second = (write_enhanced(folder / name, shapes()) for name in ("1.dcm", "2.dcm"))
    dataset, other = pydicom.dcmread(first), pydicom.dcmread(second)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSequence[0].ImagePositionPatient
        position[2] += STEPS[0] * len(shapes())
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, getattr(other, keyword))
    dataset.save_as(first)


BAD_OUTPUTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "nowhere": (
        lambda folder: write_series(folder, shapes(), FrameOfReferenceUID=None),
        "m.seg.dcm",
        "Frame of Reference UID is missing",
    ),
    "two files": (two_enhanced_files, "m.seg.dcm", "spread over several multi-frame files"),
    "burned in": (
        lambda folder: write_series(folder, shapes(), BurnedInAnnotation="YES"),
        "m.png",
        "pixels show who it is",
    ),
}


@pytest.mark.parametrize("kind", BAD_OUTPUTS)
def test_outputs_that_cannot_be_made_are_refused_before_the_work(
    kind: str, bundle: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume takes minutes: what its outputs lack is said before them."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the volume was segmented")

    monkeypatch.setattr("edgemamba.runtime.commands.run_volume.segment", never)
    make, name, words = BAD_OUTPUTS[kind]
    (tmp_path / "ct").mkdir()
    make(tmp_path / "ct")
    code, _, err = run("-s", tmp_path / "ct", "-o", tmp_path / name, bundle=bundle)
    assert (code, words in " ".join(err.split())) == (2, True), err


def test_a_folder_that_stands_in_for_a_read_only_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, to whom every folder is writable; the answer of the system is made."""
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    with pytest.raises(SinkError, match="cannot be written to"):
        check_outputs([str(tmp_path / "m.nii.gz")], [str(tmp_path / "ct")], bundle)


def test_what_cannot_be_asked_of_a_bundle_of_pictures(run: Run, clip: Path, tmp_path: Path) -> None:
    code, _, err = run("-s", clip, "-o", tmp_path / "m.seg.dcm")
    assert code == 2
    assert "masks come from bundles that segment volumes" in " ".join(err.split())
    code, _, err = run("-s", clip, "-s", clip)
    assert code == 2
    assert "one --source at a time" in " ".join(err.split())


def test_a_segmenter_of_pictures_is_not_streamed(colour_bundle: Path, run: Run, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(colour_bundle, folder)
    document = json.loads((folder / "manifest.json").read_text()) | {"task": "segmentation"}
    document["outputs"] = [{"name": "logits", "dtype": "float32", "shape": ["batch", 3, 32, 32]}]
    (folder / "manifest.json").write_text(json.dumps(document))
    code, _, err = run("-s", clip, bundle=folder)
    assert code == 2
    assert "streams carry classes only" in " ".join(err.split())


def test_a_bundle_of_volumes_takes_no_pictures(bundle: Path) -> None:
    with load(bundle, "ort-function") as engine, pytest.raises(BundleError, match="segments volumes, not pictures"):
        engine(np.zeros((1, 16, 16, 3), np.uint8))


def test_logits_that_are_not_finite_are_an_error(bundle: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "ct", shapes())
    with load(bundle, "ort-function") as engine:
        engine.infer = lambda frames: {"logits": np.full((len(frames), 3, *CARD.patch), np.nan)}  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="not finite"):
            segment(engine, read_volumes([str(tmp_path / "ct")], ("CT",)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "classification"}, "bundle of volumes is one of segmentation"),
        ({"volume": None}, "one of preprocessing"),
        ({"preprocessing": {}}, "not both"),
        ({"class_names": ["a", "a", "b"]}, "given twice|no class"),
        ({"class_names": ["a", "b"]}, "2 names for 3 classes"),
        ({"task": "detection"}, "task"),
        ({"input": {"name": "frames", "dtype": "uint8", "shape": ["batch", 1, 8, 16, 16]}}, "volume makes float32"),
        ({"input": {"name": "frames", "dtype": "float32", "shape": ["batch", 2, 8, 16, 16]}}, "volume makes"),
        ({"outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3, 8, 16, 8]}]}, "no segmentation of"),
        ({"outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}]}, "no segmentation of"),
        ({"outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 1, 8, 16, 16]}]}, "classes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_manifests_that_contradict_themselves(change: dict[str, Any], words: str, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(bundle, folder)
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(BundleError, match=words):
        Bundle.load(folder)


def test_the_card_survives_the_manifest(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.volume == CARD
    assert "preprocessing" not in json.loads((bundle / "manifest.json").read_text())


def test_ctrl_c_between_windows_leaves_nothing(
    bundle: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer, windows = OrtEngine.infer, []

    def interrupted(engine: OrtEngine, frames: NDArray[Any]) -> dict[str, NDArray[Any]]:
        windows.append(frames.shape)
        if len(windows) == 3:
            signal.raise_signal(signal.SIGINT)
        return infer(engine, frames)

    monkeypatch.setattr(OrtEngine, "infer", interrupted)
    (tmp_path / "out").mkdir()
    source = write_nifti(tmp_path / "ct.nii.gz", shapes())
    outs = ("mask.nii.gz", "look.png")
    code, out, err = run(
        "--source", source, *(part for name in outs for part in ("-o", tmp_path / "out" / name)), bundle=bundle
    )
    assert (code, out, len(windows)) == (130, "", 3)
    assert err.strip().endswith("edgemamba: error: interrupted")
    assert not list((tmp_path / "out").iterdir())

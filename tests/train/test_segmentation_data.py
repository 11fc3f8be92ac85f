"""Pictures, volumes and their masks: what is found, how it is read, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from runtime.volume_files import OBLIQUE, affine_of, labels_of, shapes, write_nifti, write_series
from segmentation_toys import discs, tiny_segmentation, write_discs, write_pair
from training_toys import tiny, write_npz

from edgemamba.runtime.errors import DataError, TrainingError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import VolumeCard
from edgemamba.train.data.pictures import read_file
from edgemamba.train.data.transforms import evaluation_transform
from edgemamba.train.segmentation.augmenting import Augmenter
from edgemamba.train.segmentation.cases import Case, PictureCases, VolumeCases, count_classes
from edgemamba.train.segmentation.contents import examine, leaks
from edgemamba.train.segmentation.masks import read_mask_picture, resize_mask
from edgemamba.train.segmentation.pairs import Pair, channels_of, find_pairs, sources_of
from edgemamba.train.segmentation.settings import SegmentationAugmentation
from edgemamba.train.segmentation.training import train_segmenter
from edgemamba.train.training import train

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("monai")


def write_volume(path: Path, values: NDArray[Any], step: float = 2.0, shift: float = 0.0) -> Path:
    """NIfTI with axes to the left, the back and the head."""
    affine = np.diag([-step, -step, 3.0, 1.0])
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


# ---- what is found


def test_pairs_are_found_in_parts_and_divided_where_there_are_none(tmp_path: Path) -> None:
    root = write_discs(tmp_path / "flat", 10)
    found = find_pairs(root, seed=3)
    assert not found.volumes
    assert found.class_names == ()
    names = {part: {pair.name for pair in pairs} for part, pairs in found.parts.items()}
    assert (len(names["train"]), len(names["val"]), names["train"] & names["val"]) == (8, 2, set())
    assert {pair.name for pair in find_pairs(root, seed=3).parts["val"]} == names["val"]
    assert count_classes(found.parts["train"], volumes=False) == 2

    for part, (image, mask) in zip(("train", "valid", "testing"), discs(3), strict=True):
        write_pair(tmp_path / "parts" / part, "one", image, mask)
    (tmp_path / "parts" / "classes.txt").write_text("background\nlesion\n")
    found = find_pairs(tmp_path / "parts")
    assert list(found.parts) == ["train", "val", "test"]
    assert found.class_names == ("background", "lesion")


def test_volumes_are_files_folders_of_modalities_and_of_series(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), np.float32)
    for i in range(3):
        write_volume(tmp_path / f"images/case{i}/t1.nii.gz", values)
        write_volume(tmp_path / f"images/case{i}/flair.nii.gz", values)
        write_volume(tmp_path / f"masks/case{i}.nii.gz", values.astype(np.uint8))
    found = find_pairs(tmp_path, val_fraction=0.4)
    assert found.volumes
    sources, modalities = sources_of(found.parts["train"][0])
    assert modalities == ("flair", "t1")
    assert [Path(source).name for source in sources] == ["flair.nii.gz", "t1.nii.gz"]


def test_cases_in_two_parts_are_found(tmp_path: Path) -> None:
    pictures = discs(5)
    for part, chosen in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 1))):
        for i in chosen:
            write_pair(tmp_path / part, f"{part}{i}", *pictures[i])
    recipe = Preprocessing(size=(32, 32), resize="squash")
    found = find_pairs(tmp_path)
    contents = {part: examine(PictureCases(pairs, 2, recipe, resize=True)) for part, pairs in found.parts.items()}
    assert contents["train"].labels == {"0": 3, "1": 3, "255": 3}
    assert leaks(contents) == ["1 cases of test are in train too, pixel for pixel: test1"]


def test_channels_are_counted_where_nobody_names_them(tmp_path: Path) -> None:
    one = write_volume(tmp_path / "one.nii.gz", np.zeros((4, 5, 6), np.float32))
    three = write_volume(tmp_path / "three.nii.gz", np.zeros((4, 5, 6, 3), np.float32))
    write_series(tmp_path / "ct", shapes((4, 5, 6)))
    write_volume(tmp_path / "two/a.nii.gz", np.zeros((4, 5, 6), np.float32))
    write_volume(tmp_path / "two/b.nii.gz", np.zeros((4, 5, 6), np.float32))
    counts = [channels_of(Pair("x", image, one)) for image in (one, three, tmp_path / "ct", tmp_path / "two")]
    assert counts == [1, 3, 1, 2]
    (tmp_path / "torso.nii").write_bytes(b"no nifti")
    with pytest.raises(DataError, match="this is no NIfTI file"):
        channels_of(Pair("x", tmp_path / "torso.nii", one))


# ---- how it is read


def test_a_palette_is_read_as_indices(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 255]], np.uint8)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([*range(255), *range(255), *range(255), 0, 0, 0])
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_mask_picture(tmp_path / "m.png"), indices)


def test_a_picture_keeps_its_place_when_it_is_resized(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:45] = 1
    write_pair(tmp_path, "a", mask * 200, mask)
    pair = Pair("a", tmp_path / "images/a.png", tmp_path / "masks/a.png")
    recipe = Preprocessing(size=(80, 90), resize="squash", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    whole = PictureCases([pair], 2, recipe, resize=True).read(0)
    assert whole.pixels.shape == (3, 80, 90)
    assert np.array_equal(whole.truth, mask)
    bright = whole.pixels[0].numpy() > 100 / 255
    assert (bright != (whole.labels == 1)).mean() < 0.02
    same = PictureCases([pair], 2, recipe.model_copy(update={"size": (32, 32)}), resize=False).read(0)
    assert np.array_equal(same.pixels[0].numpy() > 0.5, mask == 1)


def test_dicom_files_are_read_as_the_device_reads_them(tmp_path: Path) -> None:
    source = Path(pytest.importorskip("pydicom.data").get_testdata_file("CT_small.dcm"))
    mask = np.zeros((128, 128), np.uint8)
    mask[40:80, 50:90] = 1
    write_pair(tmp_path, "slice", mask, mask)
    (tmp_path / "images/slice.png").unlink()
    (tmp_path / "images/slice.dcm").write_bytes(source.read_bytes())
    recipe = Preprocessing(size=(64, 64), resize="squash", dtype="uint16")
    pair = Pair("slice", tmp_path / "images/slice.dcm", tmp_path / "masks/slice.png")
    case = PictureCases([pair], 2, recipe, resize=True).read(0)
    assert torch.equal(case.pixels, evaluation_transform(recipe)(read_file(source)))
    assert case.labels[32, 32] == 1
    assert case.truth.shape == (128, 128)


def test_a_volume_and_its_mask_are_turned_and_resampled_together(tmp_path: Path) -> None:
    mask = np.zeros((20, 24, 12), np.uint8)
    mask[4:10, 6:18, 3:9] = 1
    image = write_volume(tmp_path / "images/a.nii.gz", mask.astype(np.float32) * 100)
    pair = Pair("a", image, write_volume(tmp_path / "masks/a.nii.gz", mask))
    card = VolumeCard(
        modalities=("ct",),
        patch=(8, 8, 8),
        normalisation=({"kind": "window", "low": 0, "high": 100},),
        orientation="SPL",
    )
    case = VolumeCases([pair], 2, card).read(0)
    assert case.truth.shape == (12, 24, 20)
    assert case.spacing == pytest.approx((3.0, 2.0, 2.0))
    assert np.array_equal(case.pixels[0].numpy() > 0.5, case.truth == 1)
    assert np.array_equal(case.truth, mask.transpose(2, 1, 0)[:, :, ::1])
    fine = VolumeCases([pair], 2, card.model_copy(update={"spacing": (1.5, 1.0, 1.0)})).read(0)
    assert fine.pixels.shape[1:] == fine.labels.shape == (24, 48, 40)
    assert fine.truth.shape == (12, 24, 20)
    assert ((fine.pixels[0].numpy() > 0.5) != (fine.labels == 1)).mean() < 0.01


def test_a_series_takes_a_mask_that_was_drawn_on_its_conversion(tmp_path: Path) -> None:
    """NIfTI's axes are not DICOM's, and a converter may turn rows around: places decide, not indices."""
    values = shapes((10, 24, 20))
    write_series(tmp_path / "ct", values, cosines=OBLIQUE)
    turned = affine_of(OBLIQUE)
    turned[:3, 3] += turned[:3, 1] * 23
    turned[:3, 1] *= -1
    mask = write_nifti(tmp_path / "ct.nii.gz", labels_of(values)[:, ::-1], turned)
    card = VolumeCard(modalities=("ct",), patch=(8, 8, 8), normalisation=({"kind": "none"},))
    case = VolumeCases([Pair("ct", tmp_path / "ct", mask)], 3, card).read(0)
    assert np.array_equal(case.truth, labels_of(case.pixels[0].numpy()))
    assert sorted(case.truth.shape) == [10, 20, 24]


@pytest.mark.parametrize("axes", [2, 3])
def test_augmentation_moves_picture_and_mask_alike_and_by_seed(axes: int) -> None:
    size = (24,) * axes
    mask = np.zeros(size, np.uint8)
    mask[(slice(4, 14), slice(8, 20), slice(2, 12))[:axes]] = 1
    case = Case(torch.from_numpy(mask)[None].float(), mask, mask, (1.0,) * axes)
    augment = Augmenter(SegmentationAugmentation(vflip=0.5, intensity=0, noise=0), (16,) * axes, axes)
    drawn = [augment(case, seed) for seed in (0, 1, 0)]
    for pixels, labels in drawn:
        assert pixels.shape == (1, *labels.shape) == (1, *(16,) * axes)
        assert ((pixels[0].numpy() > 0.5) != (labels == 1)).mean() < 0.03
    assert torch.equal(drawn[0][0], drawn[2][0])
    assert not torch.equal(drawn[0][0], drawn[1][0])
    plain, labels = Augmenter(SegmentationAugmentation(enabled=False), None, axes)(case, 0)
    assert torch.equal(plain, case.pixels)
    assert np.array_equal(labels, mask)


def test_half_of_the_patches_have_a_class_in_their_centre_and_what_is_ignored_is_none() -> None:
    labels = np.full((64, 64), 255, np.uint8)
    labels[:, :32] = 0
    labels[40:44, 8:12] = 1
    case = Case(torch.zeros(1, 64, 64), labels, labels, (1.0, 1.0))
    augment = Augmenter(SegmentationAugmentation(enabled=False), (9, 9), 2)
    centres = [augment(case, seed)[1][4, 4] for seed in range(40)]
    assert 10 <= centres.count(1) <= 30


def test_resizing_a_mask_makes_no_new_labels() -> None:
    mask = np.array([[0, 255], [7, 7]], np.uint8)
    assert set(np.unique(resize_mask(mask, (5, 3)))) <= {0, 7, 255}


# ---- what is refused


def _other_size(root: Path) -> None:
    write_pair(root, "disc3", np.zeros((32, 32), np.uint8), np.ones((16, 32), np.uint8))


def _out_of_range(root: Path) -> None:
    write_pair(root, "disc3", np.zeros((32, 32), np.uint8), np.full((32, 32), 9, np.uint8))
    (root / "classes.txt").write_text("background\ndisc\n")


def _colours(root: Path) -> None:
    Image.new("RGB", (32, 32)).save(root / "masks/disc3.png")


def _damaged(root: Path) -> None:
    (root / "masks/disc3.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def _empty(root: Path) -> None:
    for path in root.glob("masks/*"):
        path.unlink()


def _background(root: Path) -> None:
    for path in root.glob("masks/*"):
        Image.new("L", (32, 32)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_size, r"disc3.png is 16x32 and .*disc3.png is 32x32 \(height x width\)"),
        (_out_of_range, r"disc3.png has the label 9; there are 2 classes"),
        (lambda root: (root / "masks/disc3.png").unlink(), r"images/disc3.png has no mask"),
        (lambda root: (root / "images/disc3.png").unlink(), r"masks/disc3.png has no image"),
        (lambda root: (root / "images/disc3.png").write_bytes(b"junk"), r"disc3.png"),
        (_colours, r"disc3.png is a mask of mode RGB"),
        (_damaged, r"disc3.png cannot be read as a mask"),
        (_empty, r"masks has no picture and no volume"),
        (_background, r"nothing but background"),
        (lambda root: (root / "masks").rename(root / "labels"), r"masks is missing"),
        (lambda root: (root / "classes.txt").write_text("one\n"), r"classes.txt has to name two or more"),
    ],
    ids=lambda value: getattr(value, "__name__", "message"),
)
def test_refused_pictures(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    root = write_discs(tmp_path / "data", 6)
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        train_segmenter(tiny_segmentation(root, tmp_path / "run", epochs=1))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sampling": "patches", "size": (64, 64)}, DataError, r"32x32, smaller than the patches of 64x64"),
        (
            {"model": "segmamba", "head": None, "config": {}, "size": (32, 32, 32), "head_dim": None},
            TrainingError,
            "pictures",
        ),
        ({"head": None, "head_dim": None}, TrainingError, "is a classifier; give it a --head"),
    ],
)
def test_refused_runs(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    root = write_discs(tmp_path / "data", 6)
    with pytest.raises(error, match=message):
        train_segmenter(tiny_segmentation(root, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("mask", "shift", "patch", "message"),
    [
        ((20, 24, 12), 5.0, 8, r"a.nii.gz has another affine: its voxels do not lie where"),
        ((20, 24, 10), 0.0, 8, r"has 20 x 24 x 10 voxels instead of 20 x 24 x 12"),
        ((20, 24, 12), 0.0, 16, r"12x24x20, smaller than the patches of 16x16x16"),
    ],
)
def test_refused_volumes(tmp_path: Path, mask: tuple[int, ...], shift: float, patch: int, message: str) -> None:
    image = write_volume(tmp_path / "images/a.nii.gz", np.ones((20, 24, 12), np.float32))
    pair = Pair("a", image, write_volume(tmp_path / "masks/a.nii.gz", np.ones(mask, np.uint8), shift=shift))
    with pytest.raises(DataError, match=message):
        VolumeCases([pair], 2, VolumeCard(modalities=("ct",), patch=(patch,) * 3)).read(0)


def test_no_folder_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is no folder"):
        find_pairs(tmp_path / "nowhere")


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    image = write_volume(tmp_path / "images/a.nii.gz", np.ones((8, 8, 8), np.float32))
    mask = write_volume(tmp_path / "masks/a.nii.gz", np.full((8, 8, 8), 0.5, np.float32))
    with pytest.raises(DataError, match="holds values that are no classes"):
        VolumeCases([Pair("a", image, mask)], 2, VolumeCard(modalities=("ct",), patch=(8, 8, 8))).read(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_decay": 0.9}, "--layer-decay"),
        ({"strategy": "fsdp"}, "fsdp"),
        ({"dice_weight": 0, "ce_weight": 0}, "nothing would be learned"),
        ({"head": "unet"}, "--head is 'unet'"),
        ({"overlap": 1.0}, "--overlap is 1.0"),
    ],
)
def test_settings_that_go_not_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        tiny_segmentation(Path("x"), Path("y"), **changes)


@pytest.mark.parametrize("options", [{"model": "segmamba", "config": {}}, {"config": {"head": "fpn"}}])
def test_the_training_of_classifiers_refuses_segmenters(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = tiny(write_npz(tmp_path / "d.npz"), tmp_path / "run", **({"image_size": None} | options))
    with pytest.raises(TrainingError, match="`edgemamba segment` trains those"):
        train(settings)

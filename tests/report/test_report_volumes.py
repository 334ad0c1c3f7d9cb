"""The volumes of a page: cropped, shrunk, packed, and as small as they must be."""

from __future__ import annotations

import base64
import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from trained_models import OBLIQUE

from alhvr_trainer.reports.volumes import (
    LEAST_SIZE,
    Volume,
    as_volume,
    cropped,
    embedded,
    foreground_box,
    packed,
    shrink_factors,
    shrunk,
)

pytestmark = pytest.mark.any_nnunet

GEOMETRY = {
    "spacing": (3.0, 1.5, 0.5),
    "sitk_stuff": {"spacing": (0.5, 1.5, 3.0), "origin": (-30.0, 12.0, 7.0), "direction": OBLIQUE},
}


def case(shape: tuple[int, int, int] = (12, 40, 60)) -> dict[str, Volume]:
    """An image and a label map with foreground in a corner."""
    random = np.random.default_rng(0)
    label = np.zeros(shape)
    label[2:4, 5:15, 10:30], label[2, 6, 11] = 1, 2
    image = as_volume(random.uniform(-100, 900, shape).astype(np.float32), GEOMETRY)
    return {"image": image, "reference": as_volume(label, GEOMETRY, labels=True)}


def array(volume: Volume) -> np.ndarray:
    found: np.ndarray = sitk.GetArrayFromImage(volume.image)
    return found


def unpacked(data: bytes) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    assert isinstance(image, nibabel.Nifti1Image)
    return image


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.0, [(3, 5), (2, 3)]), (2.0, [(2, 6), (0, 5)]), (100.0, [(0, 8), (0, 6)])]
)
def test_box_holds_all_masks_and_the_margin(margin: float, expected: list[tuple[int, int]]):
    """The margin is in mm: two voxels of the second axis, half a voxel of the first, rounded up."""
    one, other = np.zeros((8, 6)), np.zeros((8, 6))
    one[3, 2], other[4, 2] = 1, 5
    assert foreground_box([one, other], (4.0, 1.0), margin) == [slice(*each) for each in expected]


def test_box_without_foreground_is_everything():
    assert foreground_box([np.zeros((8, 6))], (1.0, 1.0)) == [slice(0, 8), slice(0, 6)]


def test_the_finest_axis_shrinks_first():
    assert shrink_factors([10, 100, 100], [5.0, 1.0, 1.0], 10 * 100 * 100) == [1, 1, 1]
    assert shrink_factors([10, 100, 100], [5.0, 1.0, 1.0], 60_000) == [1, 2, 1]
    assert shrink_factors([100, 100, 100], [1.0, 1.0, 1.0], 130_000) == [2, 2, 2]


def test_axes_keep_some_voxels():
    factors = shrink_factors([1, 9, 4000], [1.0, 1.0, 1.0], 1)
    assert factors == [1, 1, 4000 // LEAST_SIZE]


def test_crop_is_the_same_for_all_volumes_and_stays_in_place():
    volumes = case()
    found = cropped(volumes, margin=3.0)
    assert {each.image.GetSize() for each in found.values()} == {(32, 14, 4)}
    np.testing.assert_array_equal(array(found["image"]), array(volumes["image"])[1:5, 3:17, 4:36])
    place = volumes["image"].image.TransformIndexToPhysicalPoint((4, 3, 1))
    assert found["reference"].image.GetOrigin() == pytest.approx(place)


def test_shrinking_averages_intensities_and_keeps_labels():
    volumes = case()
    found = shrunk(volumes, 12 * 40 * 30)
    assert {each.image.GetSize() for each in found.values()} == {(30, 40, 12)}
    means = array(volumes["image"]).reshape(12, 40, 30, 2).mean(axis=3)
    np.testing.assert_allclose(array(found["image"]), means, rtol=1e-5)
    assert set(np.unique(array(found["reference"]))) <= {0, 1, 2}
    assert array(found["reference"])[2, 7, 8] == 1
    one, other = (each.image for each in found.values())
    assert one.GetOrigin() == pytest.approx(other.GetOrigin())


def test_few_voxels_are_left_alone():
    volumes = case()
    assert shrunk(volumes)["image"].image is volumes["image"].image


def test_packed_files_have_the_values_and_the_place_of_the_volume(tmp_path):
    """As SimpleITK would write it, but for the rounding of intensities."""
    volumes = case()
    for name, volume in volumes.items():
        file = str(tmp_path / f"{name}.nii.gz")
        sitk.WriteImage(volume.image, file)
        expected, found = nibabel.load(file), unpacked(packed(volume))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
        assert found.get_data_dtype() == np.uint8
        tolerance = 0 if volume.labels else 1000 / 255
        np.testing.assert_allclose(found.get_fdata(), expected.get_fdata(), atol=tolerance)
    assert packed(volumes["image"]) == packed(case()["image"])


def test_packed_labels_beyond_a_byte_and_flat_images():
    label = as_volume(np.array([[[0, 1000]]]), {"spacing": (1.0, 1.0, 1.0)}, labels=True)
    assert unpacked(packed(label)).get_fdata().max() == 1000
    flat = as_volume(np.full((2, 2, 2), 7.0), {"spacing": (1.0, 1.0, 1.0)})
    np.testing.assert_array_equal(unpacked(packed(flat)).get_fdata(), 7.0)


def test_a_2d_image_is_one_thin_slice():
    image = as_volume(np.zeros((1, 4, 6)), {"spacing": (999.0, 2.0, 0.5)}).image
    assert image.GetSpacing() == (0.5, 2.0, 0.5)


def test_nibabels_geometry():
    affine = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    properties = {"spacing": (3.0, 2.0, 1.0), "nibabel_stuff": {"original_affine": affine}}
    found = unpacked(packed(as_volume(np.zeros((2, 3, 4)), properties)))
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)


def test_volumes_are_shrunk_until_they_fit():
    volumes = case((40, 80, 80))
    whole = sum(map(len, embedded(volumes, 1e9).values()))
    small = embedded(volumes, whole / 6)
    assert sum(map(len, small.values())) <= whole / 6
    shapes = {unpacked(base64.b64decode(text)).shape for text in small.values()}
    assert len(shapes) == 1 and np.prod(shapes.pop()) < 40 * 80 * 80 / 4


def test_too_small_a_limit_ends():
    assert set(embedded(case(), 1)) == {"image", "reference"}

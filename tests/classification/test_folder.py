"""Image folders."""

import contextlib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from set_files import write_folder

from brats_seg.classification.folder import (
    CROP,
    Crops,
    broken_images,
    center_crops,
    list_folder,
    random_crops,
    read_image,
)
from brats_seg.core.errors import InputError


@pytest.fixture
def root(tmp_path):
    write_folder(tmp_path, parts=("train",))
    return tmp_path / "train"


def test_classes_are_folders_in_the_order_of_their_names(root):
    (root / ".hidden").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    images, labels, names = list_folder(root)
    assert names == ("cat", "dog")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.paths[:2] == ("cat/0.png", "cat/1.jpg")
    assert images.shape == (6, 224, 224, 3)


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (256, 256), (40, 90), (2000, 1100)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_shorter_side_becomes_256(tmp_path, size, suffix):
    Image.new("RGB", size, (200, 10, 60)).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert min(read.size) == 256
    assert read.width / read.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert np.abs(np.asarray(read).astype(int) - (200, 10, 60)).max() <= 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (300, 300)).save(path)
    assert read_image(path).mode == "RGB"


def test_cuts(root):
    images, _, _ = list_folder(root)
    ids = np.array([3, 0])
    middle = images.decode(ids, crops=center_crops(2), threads=None)
    assert middle.shape == (2, CROP, CROP, 3)
    whole = np.asarray(read_image(root / "dog" / "0.png"))  # 256 x 384
    assert np.array_equal(middle[0], whole[16:240, 80:304])
    corner = images.decode(ids[:1], crops=Crops(np.array([[1.0, 0.0]]), np.array([True])), threads=None)
    assert np.array_equal(corner[0], whole[32:256, 0:224][:, ::-1])


def test_random_cuts_follow_from_seed_and_step_alone(root):
    images, _, _ = list_folder(root)
    ids = np.arange(6)
    first = images.decode(ids, crops=random_crops(6, seed=1, step=5), threads=None)
    with ThreadPoolExecutor(2) as threads:
        assert np.array_equal(
            first, images.decode(ids, crops=random_crops(6, seed=1, step=5), threads=threads)
        )
    assert not np.array_equal(first, images.decode(ids, crops=random_crops(6, seed=1, step=6), threads=None))
    many = random_crops(4000, seed=0, step=0)
    assert many.mirrored.mean() == pytest.approx(0.5, abs=0.04)
    assert many.corners.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.03)


def test_a_broken_image_is_named_when_it_is_drawn_and_by_the_check(root):
    whole = (root / "dog" / "1.jpg").read_bytes()
    (root / "dog" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "1.jpg").write_text("no image")
    images, _, _ = list_folder(root)
    for id_, name in ((4, "dog/1.jpg"), (1, "cat/1.jpg")):
        with pytest.raises(
            InputError, match=f"{name}: not a whole JPEG or PNG: .*; replace it or remove it"
        ) as refused:
            images.decode(np.array([0, id_]), crops=center_crops(2), threads=None)
        assert "\n" not in str(refused.value)
    lines = broken_images(images)
    assert [line.partition(": ")[0] for line in lines] == [str(root / "cat/1.jpg"), str(root / "dog/1.jpg")]


def test_an_image_larger_than_any_is_refused(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"not a whole JPEG or PNG: Image size .* exceeds limit"):
        read_image(root / "cat" / "0.png")


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (9000, 9000)])
def test_an_image_that_would_become_too_large_is_refused_when_drawn_and_by_the_check(tmp_path, size):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", size if name == "a" else (8, 8)).save(tmp_path / name / "x.png")
    images, *_ = list_folder(tmp_path)
    with pytest.raises(
        InputError,
        match=rf"a/x\.png: not a whole JPEG or PNG: {size[0]} x {size[1]} pixels; 67,108,864 pixels and",
    ):
        read_image(tmp_path / "a" / "x.png")
    (line,) = broken_images(images)
    assert f"{size[0]} x {size[1]} pixels" in line


def test_no_memory_is_asked_for_a_chunk_that_the_file_does_not_hold(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (30, 30)).save(path)
    content = path.read_bytes()
    at = content.index(b"IEND") - 4
    path.write_bytes(content[:at] + b"\x7f\xff\xff\xffIDAT" + content[at + 8 :])
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_text_file_among_the_images(root):
    (root / "cat" / "labels.txt").write_text("cat")
    with pytest.raises(InputError) as refused:
        list_folder(root)
    assert (
        str(refused.value)
        == f"{root}/cat/labels.txt: is not a .jpg, .jpeg or .png file; a class folder holds only images"
    )


def test_a_file_among_the_class_folders(root):
    (root / "readme.txt").write_text("cat")
    with pytest.raises(
        InputError,
        match=r"readme\.txt: is a file among the class folders; put each image into its class folder",
    ):
        list_folder(root)


def test_empty_and_missing_folders(root):
    (root / "eel").mkdir()
    with pytest.raises(InputError, match="eel: has no images; add images or remove the folder"):
        list_folder(root)
    with pytest.raises(
        InputError,
        match="eel: has no class folders; put one folder of JPEG or PNG files for each class there",
    ):
        list_folder(root / "eel")
    with pytest.raises(InputError, match="none: cannot be read: No such file or directory"):
        list_folder(root / "none")

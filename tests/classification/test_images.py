"""Image sets as they lie on disk."""

import gzip
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from set_files import (
    write_cifar100,
    write_cifar_binary,
    write_folder,
    write_idx,
    write_mnist,
    write_omniglot,
)

from brats_seg.classification.image_set import ImageSet, keep_classes
from brats_seg.classification.images import load_images
from brats_seg.core.errors import InputError, UsageError


def refusal(name, folder):
    with pytest.raises(InputError) as refused:
        load_images(name, folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist(tmp_path, suffix):
    images, labels = write_mnist(tmp_path, suffix=suffix)
    splits = load_images("mnist", tmp_path)
    assert np.array_equal(splits.train.images[..., 0], images)
    assert splits.train.labels.tolist() == labels.tolist()
    assert (len(splits.train), len(splits.test), splits.train.image_size, splits.train.n_channels) == (
        40,
        20,
        (28, 28),
        1,
    )
    assert splits.train.counts.tolist() == [4] * 10
    assert splits.train.scale == 1 / 256


def test_mnist_by_the_name_with_a_dot(tmp_path):
    write_mnist(tmp_path, suffix="")
    for path in tmp_path.iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(load_images("mnist", tmp_path).train) == 40


def test_mnist_with_labels_and_images_of_different_length(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(39, np.uint8))
    images = tmp_path / "train-images-idx3-ubyte.gz"
    assert (
        refusal("mnist", tmp_path)
        == f"{images} holds 40 images but train-labels-idx1-ubyte.gz 39 labels; every image needs one"
    )


def test_mnist_cut_short_or_with_an_eleventh_digit(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    write_idx(path, np.full(20, 10, np.uint8))
    assert (
        refusal("mnist", tmp_path)
        == f"{tmp_path}/t10k-images-idx3-ubyte.gz: labels lie in 10..10; 10 classes need 0..9"
    )
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-3]))
    assert (
        refusal("mnist", tmp_path)
        == f"{path}: its header says 20 = 20 bytes, and 17 follow; download it again"
    )


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "imagenet_lt", "omniglot", "folder", "npz"])
def test_a_missing_set_says_what_to_put_where(tmp_path, name):
    said = refusal(name, tmp_path / "none")
    assert said.startswith(str(tmp_path / "none"))
    wanted = {
        "mnist": "train-images-idx3-ubyte",
        "cifar10": "cifar-10-batches-bin",
        "cifar100": "cifar-100-binary",
        "imagenet_lt": "ImageNet_LT_train.txt",
        "omniglot": "images_background",
        "folder": "train/<class>/*.jpg",
        "npz": "train_images",
    }
    assert wanted[name] in said


def test_an_unknown_set(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"images\.name 'svhn' is unknown; the names are mnist, cifar10, cifar100, imagenet_lt",
    ):
        load_images("svhn", tmp_path)


def test_cifar10_of_any_number_of_rows(tmp_path):
    write_cifar_binary(tmp_path / "cifar-10-batches-bin", sizes=(7, 12, 1))
    for folder in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        splits = load_images("cifar10", folder)
        assert (len(splits.train), len(splits.test)) == (20, 5)
        assert splits.train.class_names[:2] == ("airplane", "automobile")
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text("one two")
    assert refusal("cifar10", tmp_path).endswith("batches.meta.txt: 2 class names; CIFAR-10 has 10")


@pytest.mark.parametrize("form", ["binary", "python"])
def test_cifar100_is_read_by_its_fine_labels(tmp_path, form):
    made = write_cifar100(tmp_path / f"cifar-100-{form}", form=form)
    splits = load_images("cifar100", tmp_path)
    for part, (pixels, labels) in zip((splits.train, splits.test), made.values(), strict=True):
        assert part.labels.tolist() == labels.tolist()
        assert part.images[7, 2, 5].tolist() == [pixels[7, c * 1024 + 2 * 32 + 5] for c in range(3)]
    assert splits.train.class_names[:2] == ("name00", "name01")
    assert len(splits.train.class_names) == 100


def test_cifar100_that_is_damaged(tmp_path):
    write_cifar100(tmp_path / "b", form="binary")
    (tmp_path / "b" / "fine_label_names.txt").write_text("one two")
    assert refusal("cifar100", tmp_path / "b").endswith("names.txt: 2 class names; CIFAR-100 has 100")
    (tmp_path / "b" / "fine_label_names.txt").unlink()
    assert load_images("cifar100", tmp_path / "b").train.class_names[99] == "99"
    (tmp_path / "b" / "train.bin").write_bytes(bytes(3073))
    assert refusal("cifar100", tmp_path / "b").endswith(
        "train.bin: 3073 bytes are not whole rows of 3074 (2 labels, 3072 pixels); download it again"
    )
    write_cifar100(tmp_path / "p", form="python")
    (tmp_path / "p" / "meta").write_bytes(pickle.dumps({b"label_names": []}))
    assert refusal("cifar100", tmp_path / "p").endswith("meta: 0 class names; CIFAR-100 has 100")


def write_lists(root, *, train="", test="test/cat/0.png 0\ntest/dog/0.png 1\n"):
    write_folder(root)
    lines = "".join(f"train/cat/{i}.{'jpg' if i % 2 else 'png'} 0\n" for i in range(3))
    (root / "ImageNet_LT_train.txt").write_text(train or lines + "train/dog/1.jpg 1\n")
    (root / "ImageNet_LT_test.txt").write_text(test)


def test_imagenet_lt_is_what_its_lists_say(tmp_path):
    write_lists(tmp_path)
    splits = load_images("imagenet_lt", tmp_path)
    assert (splits.train.counts.tolist(), splits.test.counts.tolist()) == ([3, 1], [1, 1])
    assert splits.train.class_names == ("cat", "dog")
    assert splits.validation is None
    assert splits.train.images.paths[3] == "train/dog/1.jpg"
    (tmp_path / "ImageNet_LT_val.txt").write_text("train/dog/2.png 1\n")
    assert load_images("imagenet_lt", tmp_path).validation.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"train": "train/cat/0.png\n"}, "line 1 is not a path and a class number: 'train/cat/0.png'"),
        ({"train": "train/cat/9.png 0\ntrain/cat/8.png 0\n"}, "ImageNet_LT_train.txt but missing (1 more "
                                                               "are missing too)"),
        ({"test": "\n"}, "_test.txt: line 1 is not a path and a class number: ''"),
        ({"train": "train/cat/0.png -1\n"}, "line 1 is not a path and a class number: 'train/cat/0.png -1'"),
    ],
)  # fmt: skip
def test_a_list_that_is_damaged_is_one_line(tmp_path, lists, said):
    write_lists(tmp_path, **lists)
    assert refusal("imagenet_lt", tmp_path).endswith(said)


def test_omniglot_folders_are_characters_of_alphabets(tmp_path):
    write_omniglot(tmp_path)
    splits = load_images("omniglot", tmp_path)
    assert (len(splits.train.class_names), splits.train.image_size) == (12, (28, 28))
    assert splits.train.class_names[0] == "images_background/Alphabet0/character01"
    assert splits.train.class_names[-1] == "images_evaluation/Alphabet1/character03"
    assert (splits.train.counts.tolist(), splits.test.counts.tolist()) == ([4] * 12, [1] * 12)
    for label in (0, 11):
        image = splits.train.images[splits.train.labels == label][0, :, :, 0]
        assert (image.min(), image.max()) == (0, 255)  # bright ink on black
        assert abs(int(image.sum(axis=1).argmax()) - 28 * (8 * label + 4) / 105) < 2
    (tmp_path / "images_background" / "Alphabet0" / "notes.txt").write_text("x")
    assert "notes.txt: is a file among the class folders" in refusal("omniglot", tmp_path)


def test_images_of_a_patient_stay_together(tmp_path):
    labels = np.repeat([0, 1], [80, 20])
    patients = np.array([f"P{i // 2}" for i in range(100)])
    pixels = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels, patients=patients)
    splits = load_images("npz", tmp_path / "a.npz")
    assert (splits.train.counts.tolist(), splits.test.counts.tolist()) == ([64, 16], [16, 4])
    assert not set(splits.train.patients) & set(splits.test.patients)
    assert [f"P{v // 2}" for v in splits.test.images[:, 0, 0, 0]] == splits.test.patients.tolist()
    others = replace(splits.train, patients=splits.train.patients[::-1].copy())
    assert replace(splits, train=others).digest != splits.digest


@pytest.mark.parametrize(
    ("patients", "said"),
    [
        (np.repeat(["a", "b"], 10), "images: 2 patients; a fifth is held out, so 5 at least"),
        (np.repeat(list("abcdefghij"), [11, *[1] * 9]), "class '0' would be only in training or only in "
                                                       "test, because patients are kept together; give "
                                                       "train and test yourself"),
        (np.zeros(20), "patients is float64 of 20; one number or text an image"),
        (np.zeros(19, int), "patients is int64 of 19; one number or text an image"),
    ],
)  # fmt: skip
def test_patients_that_cannot_be_parted(tmp_path, patients, said):
    labels = np.repeat([0, 1], 10)
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 4, 4), np.uint8), labels=labels, patients=patients)
    assert refusal("npz", tmp_path / "a.npz").endswith(said)


def test_a_patient_in_two_published_parts(tmp_path):
    of = {f"{part}_patients": np.arange(30) + i * 29 for i, part in enumerate(("train", "test", "val"))}
    write_npz(tmp_path / "a.npz", **of)
    said = "test_images: patient '29' also has training images; a patient must be in one part"
    assert refusal("npz", tmp_path / "a.npz").endswith(said)


def test_a_table_names_the_patients_of_a_folder(tmp_path):
    write_folder(tmp_path, parts=("all",), per_class=10)
    root, names = (
        tmp_path / "all",
        [(c, i, "jpg" if i % 2 else "png") for c in ("cat", "dog") for i in range(10)],
    )
    rows = [f"{c}/{i}.{suffix},{c}{i // 2}" for c, i, suffix in names]
    (root / "patients.csv").write_text("file,patient\n" + "\n".join(rows))
    splits = load_images("folder", root)
    assert (splits.train.counts.tolist(), splits.test.counts.tolist()) == ([8, 8], [2, 2])
    assert len(set(splits.test.patients)) == 2
    (root / "patients.csv").write_text("file,patient\n" + "\n".join(rows[1:]))
    assert refusal("folder", root).endswith("patients.csv: no patient of cat/0.png; every image has one")
    (root / "patients.csv").write_text("path\nx")
    assert refusal("folder", root).endswith(
        "patients.csv: has the columns path; it needs the columns file and patient"
    )


def test_keeping_two_classes_numbers_them_anew(tmp_path):
    write_cifar_binary(tmp_path / "bin", sizes=(200,), n_test=50)
    splits = load_images("cifar10", tmp_path / "bin")
    two = keep_classes(splits, ("truck", "cat"))
    assert two.train.class_names == ("truck", "cat")
    assert two.train.counts.tolist() == splits.train.counts[[9, 3]].tolist()
    assert np.array_equal(two.test.images[two.test.labels == 1], splits.test.images[splits.test.labels == 3])
    for classes, said in (
        (("truck", "eel"), r"images\.classes 'eel' is unknown; .* has airplane, automobile"),
        (("cat",), r"images\.classes cat: give two classes or more, each once"),
        (("cat", "cat"), r"images\.classes cat, cat: give two classes"),
    ):
        with pytest.raises(UsageError, match=said):
            keep_classes(splits, classes)


def test_a_folder_with_train_and_test(tmp_path):
    write_folder(tmp_path)
    splits = load_images("folder", tmp_path)
    assert (len(splits.train), len(splits.test), splits.train.class_names) == (6, 6, ("cat", "dog"))
    assert splits.validation is None
    kept = keep_classes(splits, ("dog", "cat")).train
    assert [kept.images.paths[i][:3] for i in (0, 5)] == ["cat", "dog"]
    assert kept.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_a_folder_with_val_alone_is_tested_on_it_as_imagenet(tmp_path):
    write_folder(tmp_path, parts=("train", "val"))
    splits = load_images("folder", tmp_path)
    assert splits.test.name == f"{tmp_path}/val"
    write_folder(tmp_path, parts=("test",))
    splits = load_images("folder", tmp_path)
    assert (splits.test.name, splits.validation.name) == (f"{tmp_path}/test", f"{tmp_path}/val")


def test_class_folders_alone_give_a_fifth_of_each_class_for_the_test(tmp_path):
    write_folder(tmp_path, parts=("all",), per_class=10)
    splits = load_images("folder", tmp_path / "all")
    assert splits.test.counts.tolist() == [2, 2]
    assert sorted([*splits.train.images.paths, *splits.test.images.paths]) == sorted(
        f"{c}/{p.name}" for c in ("cat", "dog") for p in (tmp_path / "all" / c).iterdir()
    )
    assert load_images("folder", tmp_path / "all").test.images.paths == splits.test.images.paths


def test_the_digest_stands_for_images_labels_and_names(tmp_path):
    write_mnist(tmp_path / "a")
    write_folder(tmp_path / "f")
    splits, again = (
        load_images("mnist", tmp_path / "a"),
        load_images("mnist", tmp_path / "a", classes=tuple("0123456789")),
    )
    assert splits.digest == again.digest
    assert splits.n_bytes == 60 * 28 * 28
    assert load_images("mnist", tmp_path / "a", classes=tuple("1023456789")).digest != splits.digest
    changed = replace(splits.test, labels=splits.test.labels[::-1].copy())
    assert replace(splits, test=changed).digest != splits.digest
    folder = load_images("folder", tmp_path / "f")
    first = folder.digest
    (tmp_path / "f" / "train" / "cat" / "0.png").write_bytes(b"x")
    assert load_images("folder", tmp_path / "f").digest != first
    assert folder.n_bytes == 0


def test_folders_with_other_classes(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "eel")
    assert (
        refusal("folder", tmp_path)
        == f"{tmp_path}/test: class 'dog' is only in one of test and train; both need the same class folders"
    )


def write_npz(path, n=30, *, channels=3, **others):
    rng = np.random.default_rng(0)
    shape = (n, 8, 8, channels) if channels else (n, 8, 8)
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, shape, np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 3).astype(np.uint8)[:, None]
    np.savez(path, **{key: value for key, value in (arrays | others).items() if value is not None})
    return arrays


@pytest.mark.parametrize("channels", [0, 3])
def test_npz_in_the_form_of_medmnist(tmp_path, channels):
    arrays = write_npz(tmp_path / "a.npz", channels=channels)
    splits = load_images("npz", tmp_path / "a.npz")
    assert np.array_equal(splits.validation.images.reshape(arrays["val_images"].shape), arrays["val_images"])
    assert splits.train.labels.tolist() == [0, 1, 2] * 10
    assert (splits.train.n_channels, splits.train.class_names) == (channels or 1, ("0", "1", "2"))


def test_npz_of_images_and_labels_alone(tmp_path):
    labels = np.repeat([0, 1], [20, 5])
    np.savez(
        tmp_path / "a.npz",
        images=np.zeros((25, 4, 4), np.uint8),
        labels=labels,
        class_names=np.array(["no", "yes"]),
    )
    splits = load_images("npz", tmp_path / "a.npz")
    assert (splits.train.counts.tolist(), splits.test.counts.tolist()) == ([16, 4], [4, 1])
    assert splits.train.class_names == ("no", "yes")


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"test_labels": None}, "no 'test_labels' in it (found train_images, train_labels, val_images, "
                                "val_labels, test_images); give "
         "train_ and test_images and _labels, or images and labels"),
        ({"test_images": np.zeros((30, 8, 8, 3))}, "test_images is float64 of 30 x 8 x 8 x 3; uint8 of n x y "
                                                   "x x, or n x y x x x channels"),
        ({"train_labels": np.zeros((30, 4), np.uint8)}, "train_labels is uint8 of 30 x 4; one whole number "
                                                        "an image"),
        ({"train_labels": np.zeros(30)}, "train_labels is float64 of 30; one whole number an image"),
        ({"train_labels": np.full(30, 2**63, np.uint64)},
         f"train_labels go up to {2**63}; labels are numbers of classes, 65535 at most"),
    ],
)  # fmt: skip
def test_npz_of_something_else(tmp_path, others, said):
    write_npz(tmp_path / "a.npz", **others)
    assert refusal("npz", tmp_path / "a.npz") == f"{tmp_path}/a.npz: {said}"


def test_npz_with_labels_and_images_of_different_length(tmp_path):
    write_npz(tmp_path / "a.npz", train_labels=np.zeros(29, np.uint8))
    assert (
        refusal("npz", tmp_path / "a.npz")
        == f"{tmp_path}/a.npz train_images: 30 images but 29 labels; every image needs one"
    )
    write_npz(tmp_path / "a.npz", test_labels=np.full(30, 3, np.uint8))
    assert (
        refusal("npz", tmp_path / "a.npz")
        == f"{tmp_path}/a.npz test_images: labels lie in 3..3; 3 classes need 0..2"
    )


def test_images_of_another_size_to_test_on_and_a_single_class(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, test_images=np.zeros((30, 9, 8, 3), np.uint8))
    size = np.load(path)["train_images"].shape[1:]
    assert (
        refusal("npz", path)
        == f"{path} test_images: images of 9 x 8 x 3; the training images are {size[0]} x {size[1]} x 3"
    )
    np.savez(path, images=np.zeros((5, 8, 8), np.uint8), labels=np.zeros(5, np.int64))
    assert refusal("npz", path) == f"{path} images train: 1 class; a study needs two classes or more"


def test_npz_that_is_damaged_or_holds_pickles(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path)
    whole = path.read_bytes()
    for content in (whole[:900], b"", b"no zip", whole[:200] + b"\0" * 50 + whole[250:]):
        path.write_bytes(content)
        assert refusal("npz", path).startswith(f"{path}: cannot be read as .npz: ")
    np.savez(path, images=np.array([{}, {}], object), labels=np.zeros(2, np.int64))
    assert refusal("npz", path) == f"{path}: cannot be read as .npz: has a damaged header"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_packed_by_another_method_or_encrypted(tmp_path, method):
    path = tmp_path / "a.npz"
    write_npz(path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.npz", "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    said = "train_images.npy is encrypted, or compressed by another method than deflate"
    assert refusal("npz", tmp_path / "b.npz") == f"{tmp_path}/b.npz: cannot be read as .npz: {said}"
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag that says encrypted
    path.write_bytes(content)
    assert refusal("npz", path) == f"{path}: cannot be read as .npz: {said}"


def test_npz_whose_header_claims_more_than_there_is(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((25, 4, 4), np.uint8), labels=np.zeros(25, np.int64))
    with zipfile.ZipFile(path) as archive:
        contents = {
            name: archive.read(name).replace(b"(25, 4, 4)", b"(25, 4, 9)") for name in archive.namelist()
        }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    assert "its header claims" in refusal("npz", path)
    np.savez(
        path,
        images=np.zeros((25, 4, 4), np.uint8),
        labels=np.zeros(25, np.int64),
        class_names=np.full(2, -1, np.int32),
    )
    assert refusal("npz", path) == f"{path}: class_names is int32 of 2; a text for each class"


def test_a_class_of_one_image_cannot_be_parted(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([0, 0, 1]))
    assert refusal("npz", tmp_path / "a.npz").endswith(
        "class '1' has 1 image; it needs one for training and one for the test"
    )


def test_negative_labels():
    with pytest.raises(InputError, match=r"mine: labels lie in -1\.\.0; 2 classes need 0\.\.1"):
        ImageSet("mine", np.zeros((2, 4, 4, 1), np.uint8), np.array([-1, 0]), ("a", "b"), 1.0)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_real_sets(real_data, name):
    folder = real_data.parent / name
    if not folder.is_dir():
        pytest.skip(f"no {name}/ beside brats/")
    splits = load_images(name, folder)
    if name == "mnist":
        assert splits.train.counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert (splits.test.counts.min(), splits.test.counts.max()) == (892, 1135)
    else:
        assert splits.train.counts[:2].tolist() == [5000, 5000]
        assert splits.train.images.dtype == np.uint8

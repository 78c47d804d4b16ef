"""CIFAR-10 batches."""

import io
import pickle

import numpy as np
import pytest
from set_files import cifar_rows, write_cifar_binary

from brats_seg.classification.cifar import read_binary_batch, read_python_batch
from brats_seg.core.errors import InputError

PIXELS, LABELS = cifar_rows(6)


def write_pickle(path, tree, *, protocol=2):
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    return path


def test_binary_rows_are_label_and_channels(tmp_path):
    write_cifar_binary(tmp_path / "bin", sizes=(6,))
    images, labels = read_binary_batch(tmp_path / "bin" / "data_batch_1.bin")
    assert images.shape == (6, 32, 32, 3)
    assert labels.tolist() == LABELS.tolist()
    assert images[4, 2, 5].tolist() == [PIXELS[4, c * 1024 + 2 * 32 + 5] for c in range(3)]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_python_batches_of_every_protocol_are_the_binary_ones(tmp_path, protocol):
    path = write_pickle(
        tmp_path / "batch",
        {b"data": PIXELS, b"labels": LABELS.tolist(), b"batch_label": b"x"},
        protocol=protocol,
    )
    images, labels = read_python_batch(path)
    assert np.array_equal(images, PIXELS.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels.tolist() == LABELS.tolist()


def test_the_published_form_of_python_2(tmp_path):
    # Python 2 strings and NumPy's old home, as in the files of 2009; written by hand because Python 3 cannot.
    data = bytes(PIXELS[:1].tobytes())
    stream = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tbU\x06labels]q\x08K\x07au."
    )
    (tmp_path / "batch").write_bytes(stream)
    images, labels = read_python_batch(tmp_path / "batch")
    assert labels.tolist() == [7]
    assert np.array_equal(images[0], PIXELS[0].reshape(3, 32, 32).transpose(1, 2, 0))


class Touch:
    """A pickle that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_names_another_class_is_not_run(tmp_path):
    path = write_pickle(tmp_path / "batch", {b"data": PIXELS, b"labels": [Touch(tmp_path / "made")]})
    with pytest.raises(InputError) as refused:
        read_python_batch(path)
    named = "io.open" if open.__module__ in ("io", "_io") else "builtins.open"
    said = str(refused.value)
    assert said.startswith(f"{path}: names ")
    assert said.endswith("; a CIFAR batch names only NumPy's array builders, so the file was not read")
    assert named.split(".")[1] in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02cnumpy.testing._private.utils\nrunstring\n.",
        b"\x80\x02cnumpy\nfromfile\n.",
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    ],
)
def test_no_other_name_of_numpy_either(tmp_path, stream):
    (tmp_path / "batch").write_bytes(stream)
    with pytest.raises(InputError, match="names "):
        read_python_batch(tmp_path / "batch")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ([1, 2], "holds no 'data' and 'labels'; a CIFAR-10 batch does"),
        ({b"data": PIXELS}, "holds no 'data' and 'labels'; a CIFAR-10 batch does"),
        ({b"data": PIXELS, b"labels": [1, 2]}, "6 images and 2 labels; every image has one"),
        (
            {b"data": PIXELS[:, :5], b"labels": [1]},
            "'data' is not uint8 in rows of 3072 pixels; download it again",
        ),
        (
            {b"data": PIXELS.astype(np.float32), b"labels": [1]},
            "'data' is not uint8 in rows of 3072 pixels; download it again",
        ),
        (
            {b"data": PIXELS, b"labels": ["cat"] * 6},
            "'labels' is not a list of whole numbers; download it again",
        ),
        (
            {b"data": PIXELS, b"labels": [10**30] * 6},
            "'labels' is not a list of whole numbers; download it again",
        ),
        ({b"data": PIXELS, b"labels": [0, 1, 2, 3, 10, 5]}, "row 4 has label 10; the labels are 0..9"),
    ],
)
def test_a_pickle_of_something_else(tmp_path, tree, said):
    path = write_pickle(tmp_path / "batch", tree)
    with pytest.raises(InputError) as refused:
        read_python_batch(path)
    assert str(refused.value) == f"{path}: {said}"


def test_a_pickle_cut_short_and_one_that_asks_for_all_memory(tmp_path):
    whole = pickle.dumps({b"data": PIXELS, b"labels": LABELS.tolist()}, protocol=2)
    bomb = io.BytesIO()
    pickle.Pickler(bomb, protocol=2).dump(0)
    huge = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"\x8a\x07\xff\xff\xff\xff\xff\xff\x0f\x85U\x01b\x87R."
    )
    for content in (whole[: len(whole) // 2], b"", huge):
        (tmp_path / "batch").write_bytes(content)
        with pytest.raises(InputError, match="batch: not a pickled CIFAR batch: ") as refused:
            read_python_batch(tmp_path / "batch")
        assert "\n" not in str(refused.value)


def test_binary_files_cut_short_or_of_another_set(tmp_path):
    path = tmp_path / "b.bin"
    path.write_bytes(bytes(3073 + 9))
    with pytest.raises(
        InputError,
        match=r"b\.bin: 3082 bytes are not whole rows of 3073 \(1 label, 3072 pixels\); download it again",
    ):
        read_binary_batch(path)
    path.write_bytes(bytes(3073) + bytes([77]) + bytes(3072))
    with pytest.raises(InputError, match=r"b\.bin: row 1 has label 77; the labels are 0\.\.9"):
        read_binary_batch(path)


def nested(n):
    """A pickle of a mapping whose key is n tuples within each other."""
    return b"\x80\x02}(" + b")" + b"\x85" * n + b"K\x01u."


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x2f.", "the instruction LONG_BINPUT that no CIFAR batch has"),
        (b"\x80\x02Nq\xff.", "the instruction BINPUT"),
        (b"Np999999999\n.", "the instruction PUT"),
        (nested(100_000), "the instruction TUPLE1"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "expected 9223372036854775807 bytes"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", ""),
        (b"(iposix\nsystem\n.", "the instruction INST"),
    ],
)
def test_a_pickle_that_asks_for_too_much_is_refused_before_it_is_built(tmp_path, stream, said):
    (tmp_path / "batch").write_bytes(stream)
    with pytest.raises(
        InputError, match=f"batch: not a pickled CIFAR batch: .*{said}|batch: holds no 'data'"
    ):
        read_python_batch(tmp_path / "batch")


def test_an_array_of_a_shape_that_its_bytes_do_not_fill(tmp_path):
    head = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    tail = b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x03abctbU\x06labels]K\x07au."
    (tmp_path / "batch").write_bytes(head + b"(K\x01\x8a\x05\x00\x00\x00\x00\x7fM\x00\x0c" + tail)
    with pytest.raises(InputError, match="batch: not a pickled CIFAR batch: cannot reshape array of size 3"):
        read_python_batch(tmp_path / "batch")

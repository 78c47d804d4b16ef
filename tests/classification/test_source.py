"""Batches of image sets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from set_files import write_folder

from brats_seg.classification.image_set import ImageSet
from brats_seg.classification.images import load_images
from brats_seg.classification.source import ImageSource
from brats_seg.core.errors import InputError, UsageError
from brats_seg.imbalance.samplers import make_sampler

N = 30


def small_set(*, k=3, dtype=np.uint8, scale=1 / 255):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 5, 6, 3)).astype(dtype)
    return ImageSet("mine", images, np.arange(N) % k, tuple(map(str, range(k))), scale)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.uint8, 1 / 256), (np.uint8, 1.0), (np.float32, 1.0), (np.float32, 0.5)]
)
def test_a_batch_holds_the_scaled_images_of_its_ids(dtype, scale):
    images = small_set(dtype=dtype, scale=scale)
    ids = np.array([7, 0, 7, 29])
    inputs, targets, counts = ImageSource(images).batch(ids)
    assert torch.equal(
        inputs,
        torch.from_numpy(images.images[ids].astype(np.float32) * np.float32(scale)).permute(0, 3, 1, 2),
    )
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert (targets.dtype, targets.tolist(), counts.tolist()) == (torch.uint8, [1, 0, 1, 2], [1, 2, 1, 0])


@given(batches=st.lists(st.lists(st.integers(0, N - 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_a_batch_written_again_is_a_new_one(batches):
    source = ImageSource(small_set())
    out = None
    for ids in map(np.array, batches):
        out = source.batch(ids, out=out)
        fresh = ImageSource(small_set()).batch(ids)
        assert torch.equal(out.inputs, fresh.inputs)
        assert torch.equal(out.targets, fresh.targets)
        assert np.array_equal(out.counts, fresh.counts)


def test_more_than_255_classes_have_wide_targets():
    images = ImageSet(
        "mine", np.zeros((300, 2, 2, 1), np.uint8), np.arange(300), tuple(map(str, range(300))), 1.0
    )
    assert ImageSource(images).batch(np.array([255, 299])).targets.tolist() == [255, 299]


def test_some_images_of_a_source_share_its_pixels():
    source = ImageSource(small_set())
    some = source.restrict(np.array([29, 3, 4, 0, 2]))
    assert (len(some), some.shape, some.labels.tolist()) == (5, (5, 5, 6, 3), [2, 0, 1, 0, 2])
    assert (source.index.counts.tolist(), some.index.counts.tolist()) == ([10, 10, 10], [2, 1, 2])
    assert torch.equal(some.batch(np.array([1, 0])).inputs, source.batch(np.array([3, 29])).inputs)
    assert some.batch(np.array([1, 0])).targets.tolist() == some.targets(np.array([1, 0])).tolist() == [0, 2]
    fewer = some.restrict(np.array([4, 1]))
    assert torch.equal(fewer.batch(np.array([0])).inputs, source.batch(np.array([2])).inputs)
    assert fewer.rows.tolist() == [2, 3]
    assert fewer._pixels is source._pixels
    with pytest.raises(InputError, match=r"mine: ids lie in 5\.\.5; there are 0\.\.4"):
        some.restrict(np.array([5]))


def test_a_sampler_draws_of_a_source():
    source = ImageSource(small_set()).restrict(np.array([29, 3, 4, 0, 2]))
    sampler = make_sampler("oversample", source.index, batch_size=6, steps=4, seed=1)
    drawn = np.concatenate([sampler.next().ids for _ in range(4)])
    assert np.bincount(source.labels[drawn]).tolist() == [8, 8, 8]


def test_values_are_rows_in_the_order_of_the_set():
    images = small_set()
    assert ImageSource(images).values(np.array([4, 2])) == pytest.approx(
        images.images[[4, 2]].reshape(2, -1) / 255
    )


def test_refusals():
    source = ImageSource(small_set())
    for ids in ([0, 30], [-1]):
        with pytest.raises(
            InputError, match=rf"mine: ids lie in {min(ids)}\.\.{max(ids)}; there are 0\.\.29"
        ):
            source.batch(np.array(ids))
    with pytest.raises(UsageError, match="out holds 2 images, but 3 ids were given"):
        source.batch(np.arange(3), out=source.batch(np.arange(2)))


def test_a_folder_is_cut_at_random_to_train_and_in_the_middle_to_test(tmp_path):
    write_folder(tmp_path)
    images = load_images("folder", tmp_path).train
    ids = np.arange(6)
    train = ImageSource(images, seed=3, threads=2)
    assert torch.equal(train.batch(ids).inputs, ImageSource(images, seed=4).batch(ids).inputs)
    first = train.batch(ids, number=1).inputs
    assert first.shape == (6, 3, 224, 224)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, ImageSource(images, seed=3).batch(ids, number=1).inputs)
    assert not torch.equal(first, train.batch(ids, number=2).inputs)
    assert not torch.equal(first, ImageSource(images, seed=4).batch(ids, number=1).inputs)
    # No mean, no deviation: bytes over 255.
    assert 50 < 255 * first[0].mean() < 70
    assert 130 < 255 * first[5].mean() < 170

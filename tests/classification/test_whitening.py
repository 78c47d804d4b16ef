"""Contrast normalization and whitening."""

from dataclasses import replace

import numpy as np
import pytest
from set_files import write_mnist

from brats_seg.classification.image_set import Splits
from brats_seg.classification.images import load_images, whiten_splits
from brats_seg.classification.whitening import ZCA_BIAS, fit_whitening, normalize_contrast, whiten
from brats_seg.core.errors import InputError, UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (400, 3, 3, 2), np.uint8)


def test_normalized_images_have_mean_0_and_length_55():
    flat = normalize_contrast(IMAGES)
    assert flat.mean(axis=1) == pytest.approx(0, abs=1e-4)
    assert np.linalg.norm(flat, axis=1) == pytest.approx(55, rel=1e-5)
    even = np.full((1, 3, 3, 2), 7, np.uint8)
    assert not normalize_contrast(even).any()
    brighter = (IMAGES // 4) * 2 + 10
    assert normalize_contrast(brighter) == pytest.approx(normalize_contrast(IMAGES // 4), abs=1e-3)


def test_whitened_training_images_are_uncorrelated():
    flat = normalize_contrast(IMAGES)
    fitted = fit_whitening(flat)
    done = whiten(IMAGES, fitted)
    assert (done.shape, done.dtype) == (IMAGES.shape, np.float32)
    values = np.linalg.eigvalsh(np.cov(done.reshape(400, -1).T, bias=True))
    # By the bias each variance v becomes v / (v + 0.1); one direction, the mean, has none.
    before = np.linalg.eigvalsh(np.cov(flat.T, bias=True))
    assert values == pytest.approx(before / (before + ZCA_BIAS), abs=1e-3)
    assert values[0] == pytest.approx(0, abs=1e-3)
    assert fitted.matrix == pytest.approx(fitted.matrix.T, abs=1e-5)


def small_splits(tmp_path):
    write_mnist(tmp_path)
    splits = load_images("mnist", tmp_path)
    return Splits(
        *(replace(part, images=np.ascontiguousarray(part.images[:, 8:16, 8:16])) for part in splits.parts)
    )


def test_the_cache_gives_the_same_images_and_knows_other_ones(tmp_path):
    splits, cache = small_splits(tmp_path), tmp_path / "cache"
    plain, first = whiten_splits(splits, cache=None), whiten_splits(splits, cache=cache)
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = whiten_splits(splits, cache=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    assert len(kept) == 2
    for a, b, c in zip(plain.parts, first.parts, again.parts, strict=True):
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.images, c.images)
        assert a.scale == 1
    changed = splits.train.images.copy()
    changed[0, 0, 0] ^= 255
    whiten_splits(replace(splits, train=replace(splits.train, images=changed)), cache=cache)
    assert len(list(cache.iterdir())) == 4


def test_test_images_are_whitened_by_what_the_training_images_say(tmp_path):
    splits = small_splits(tmp_path)
    alone = whiten_splits(splits, cache=None)
    fewer = whiten_splits(replace(splits, test=splits.test.take(np.array([3]))), cache=None)
    assert fewer.test.images[0] == pytest.approx(alone.test.images[3], abs=1e-4)


def test_a_damaged_cache_is_named(tmp_path):
    splits, cache = small_splits(tmp_path), tmp_path / "cache"
    whiten_splits(splits, cache=cache)
    path = sorted(cache.iterdir())[0]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=f"{path.name}: a damaged cache of whitened images: .*; remove it"):
        whiten_splits(splits, cache=cache)


def test_what_cannot_be_whitened(tmp_path):
    splits = small_splits(tmp_path)
    with pytest.raises(UsageError, match="whitening needs a set of bytes in memory"):
        whiten_splits(whiten_splits(splits, cache=None), cache=None)
    big = replace(splits.train, images=np.zeros((40, 80, 80, 1), np.uint8))
    with pytest.raises(UsageError, match="6400 values for each image; whitening accepts 4096 at most"):
        whiten_splits(Splits(big, big), cache=None)

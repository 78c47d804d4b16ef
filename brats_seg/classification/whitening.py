"""Global contrast normalization and ZCA whitening, fitted on training images, with a cache."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from brats_seg.core.arrays import read_npy_header
from brats_seg.core.errors import InputError
from brats_seg.core.files import atomic

CONTRAST = 55.0
"""The scale of a normalized image. This value and `ZCA_BIAS` are those of pylearn2's CIFAR-10 of Goodfellow
et al. 2013.
"""
CONTRAST_FLOOR = 1e-8
ZCA_BIAS = 0.1
_BLOCK = 4096


@dataclass(frozen=True)
class Whitening:
    """A fitted ZCA: mean (features,) and symmetric matrix (features, features), float32."""

    mean: Float32[np.ndarray, " features"]
    matrix: Float32[np.ndarray, "features features"]


def normalize_contrast(images: UInt8[np.ndarray, "n y x c"]) -> Float32[np.ndarray, "n features"]:
    """Each image minus its mean, divided by its length, times 55 (Goodfellow et al. 2013). A uniform image
    becomes 0.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat *= np.where(length > CONTRAST_FLOOR, CONTRAST / np.maximum(length, CONTRAST_FLOOR), 0).astype(
        np.float32
    )
    return flat


def fit_whitening(flat: Float32[np.ndarray, "n features"]) -> Whitening:
    """ZCA: U (S + 0.1)^-1/2 U' of the covariance (over n) of the training images. With 3,072 features this
    takes half a minute on one core.
    """
    mean = flat.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((flat.shape[1], flat.shape[1]), np.float64)
    for start in range(0, len(flat), _BLOCK):
        centered = flat[start : start + _BLOCK] - mean.astype(np.float32)
        covariance += centered.T @ centered
    values, vectors = np.linalg.eigh(covariance / len(flat))
    matrix = (vectors / np.sqrt(np.maximum(values, 0) + ZCA_BIAS)) @ vectors.T
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))


def whiten(images: UInt8[np.ndarray, "n y x c"], whitening: Whitening) -> Float32[np.ndarray, "n y x c"]:
    """Normalize the contrast of images and whiten them."""
    out = np.empty((len(images), whitening.mean.size), np.float32)
    for start in range(0, len(images), _BLOCK):
        np.matmul(
            normalize_contrast(images[start : start + _BLOCK]) - whitening.mean,
            whitening.matrix,
            out=out[start : start + _BLOCK],
        )
    return out.reshape(images.shape)


def whitened(
    train: UInt8[np.ndarray, "n y x c"],
    others: tuple[UInt8[np.ndarray, "_ y x c"], ...],
    *,
    cache: Path | None,
) -> tuple[Float32[np.ndarray, "..."], ...]:
    """Whiten training images and other images with a whitening that is fitted on the training images.

    Args:
        train: training images.
        others: sets of test or validation images, of any size.
        cache: folder in which the result is stored (4 bytes for each value) and from which it is mapped, so
            that processes share it; None for no cache.

    Returns:
        float32 images, `train` first.
    """
    if cache is None:
        fitted = fit_whitening(normalize_contrast(train))
        return tuple(whiten(images, fitted) for images in (train, *others))
    digest = _digest((train, *others))
    paths = [cache / f"gcn_zca_{digest}_{i}.npy" for i in range(1 + len(others))]
    if not all(path.is_file() for path in paths):
        cache.mkdir(parents=True, exist_ok=True)
        fitted = fit_whitening(normalize_contrast(train))
        for path, images in zip(paths, (train, *others), strict=True):
            with atomic(path) as part, part.open("wb") as file:
                np.save(file, whiten(images, fitted))
    return tuple(_mapped(path) for path in paths)


def _mapped(path: Path) -> np.ndarray:
    try:
        header = read_npy_header(path)
    except InputError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: a damaged cache of whitened images: {said}; remove it") from None
    # copy on write: torch warns about read-only arrays
    return np.memmap(path, header.dtype, mode="c", offset=header.offset, shape=header.shape)


def _digest(sets: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256(f"{CONTRAST} {CONTRAST_FLOOR} {ZCA_BIAS}".encode())
    for images in sets:
        digest.update(str(images.shape).encode())
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()[:16]

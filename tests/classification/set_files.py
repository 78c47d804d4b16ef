"""Small image sets on disk, in every form that is read."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(
    folder: Path, *, n_train: int = 40, n_test: int = 20, suffix: str = ".gz"
) -> tuple[np.ndarray, np.ndarray]:
    """Gives the training images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    made = []
    for part, n in (("train", n_train), ("t10k", n_test)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
        made.append((images, labels))
    return made[0]


def cifar_rows(n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) channel by channel, and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 10, n)


def write_cifar_binary(folder: Path, *, sizes: tuple[int, ...] = (7, 12), n_test: int = 5) -> None:
    folder.mkdir(parents=True)
    for name, n, seed in [
        *((f"data_batch_{i + 1}", n, i) for i, n in enumerate(sizes)),
        ("test_batch", n_test, 99),
    ]:
        pixels, labels = cifar_rows(n, seed=seed)
        (folder / f"{name}.bin").write_bytes(
            np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1).tobytes()
        )


def write_folder(
    root: Path,
    *,
    parts: tuple[str, ...] = ("train", "test"),
    per_class: int = 3,
    classes: tuple[str, ...] = ("cat", "dog"),
) -> None:
    rng = np.random.default_rng(0)
    for part in parts:
        for c, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                # A plain gray tells the class after JPEG; a darker left edge tells a mirrored image.
                pixels = np.full((40, 60, 3), 60 + 100 * c, np.uint8) + rng.integers(
                    0, 4, (40, 60, 3), np.uint8
                )
                pixels[:, :20] //= 2
                Image.fromarray(pixels).save(root / part / name / f"{i}.{'jpg' if i % 2 else 'png'}")

"""Small image sets on disk, in every form that is read."""

import gzip
import pickle
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


def write_cifar100(folder: Path, *, form: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two parts of a row a class, in the binary or the python form; gives pixels and fine labels of each."""
    folder.mkdir(parents=True)
    names = [f"name{c:02}" for c in range(100)]
    made = {}
    for part, seed in (("train", 0), ("test", 1)):
        pixels, labels = cifar_rows(100, seed=seed)[0], np.random.default_rng(seed).permutation(100)
        if form == "binary":
            both = np.stack([labels // 5, labels], axis=1).astype(np.uint8)
            (folder / f"{part}.bin").write_bytes(np.concatenate([both, pixels], axis=1).tobytes())
        else:
            tree = {
                b"data": pixels,
                b"fine_labels": labels.tolist(),
                b"coarse_labels": (labels // 5).tolist(),
            }
            (folder / part).write_bytes(pickle.dumps(tree))
        made[part] = pixels, labels
    if form == "binary":
        (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    else:
        (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [name.encode() for name in names]}))
    return made


def write_omniglot(
    root: Path, *, alphabets: int = 2, characters: int = 3, per_character: int = 5, side: int = 105
) -> None:
    """Black strokes on white: a bar whose height tells the character."""
    for p, part in enumerate(("images_background", "images_evaluation")):
        for a in range(alphabets):
            for c in range(characters):
                folder = root / part / f"Alphabet{a}" / f"character{c + 1:02}"
                folder.mkdir(parents=True)
                for i in range(per_character):
                    pixels = np.full((side, side), 255, np.uint8)
                    top = (p * alphabets * characters + a * characters + c) * 8 + i % 3
                    pixels[top : top + 8, 10:-10] = 0
                    Image.fromarray(pixels).convert("1").save(folder / f"{i:04}.png")


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

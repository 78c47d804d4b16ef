"""An image folder in the layout of ImageNet: one folder for each class. Files are decoded when they are
drawn.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image

from brats_seg.core.errors import InputError
from brats_seg.core.files import read_bytes, read_table, read_text, shown
from brats_seg.core.progress import track

SHORTER_SIDE = 256
"""Pixels; Buda et al. 2018, section 3.3.3."""
CROP = 224
MOST_BYTES = 1 << 30
"""Largest size of an image file in bytes."""
MOST_PIXELS = 1 << 26
"""Largest number of pixels of an image. Decoded, the image takes 200 MB."""
MOST_ELONGATED = 100
"""Largest ratio of the long side to the short side. The short side is resized to 256 pixels."""
OF_PATIENTS = "patients.csv"
"""Name of a table in the folder of an image set, with the columns file and patient."""
CHARACTER_SIDE = 28
"""Side in pixels to which a character of Omniglot is resized, as in Vinyals et al. 2016."""
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""The errors that Pillow raises for bytes that are not a complete image."""
_MOST_DIGITS = 6  # of a class number
_CHUNK = 256
"""Number of files that a thread checks at a time."""


@dataclass(frozen=True)
class Crops:
    """The crops of the images of a batch.

    Attributes:
        corners: upper left corner (y, x), as a share in 0..1 of the largest possible value.
        mirrored: whether left and right are exchanged.
    """

    corners: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder, decoded one batch at a time: RGB, shorter side 256 pixels, cropped to a square
    of 224 pixels.

    Attributes:
        root: the folder of the class folders.
        paths: path of each image, relative to `root`.
    """

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, y, x, c) of the cropped images."""
        return len(self.paths), CROP, CROP, 3

    def describe(self) -> list[str]:
        """Path and size in bytes of each file."""
        return [f"{path} {os.path.getsize(self.root / path)}" for path in self.paths]

    def decode(
        self, ids: Int64[np.ndarray, " b"], *, crops: Crops, threads: Executor | None
    ) -> UInt8[np.ndarray, "b y x c"]:
        """Decode and crop a batch. Pillow releases Python's global lock, so threads make it faster.

        Raises:
            InputError: a file is damaged or not an image; the message has its path.
        """
        out = np.empty((len(ids), CROP, CROP, 3), np.uint8)

        def one(i: int) -> None:
            out[i] = _cut(
                read_image(self.root / self.paths[ids[i]]),
                corner=crops.corners[i],
                mirrored=bool(crops.mirrored[i]),
            )

        for _ in threads.map(one, range(len(ids))) if threads is not None else map(one, range(len(ids))):
            pass
        return out


def center_crops(n: int) -> Crops:
    """Crops of the middle of each image, as in a test."""
    return Crops(np.full((n, 2), 0.5), np.zeros(n, dtype=bool))


def random_crops(n: int, *, seed: int, step: int) -> Crops:
    """Random crops, with half of the images mirrored, as in training. The random numbers come from Philox
    with the key (seed, step).
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
    return Crops(generator.random((n, 2)), generator.random(n) < 0.5)


def list_folder(root: Path) -> tuple[FolderImages, Int64[np.ndarray, " n"], tuple[str, ...]]:
    """The images of class folders, the class of each image and the class names. Classes and images are sorted
    by name. No image is decoded.

    Names that start with a dot are ignored.

    Raises:
        InputError: the name of a file is not the name of a JPEG or PNG, a class folder contains a folder, a
            class is empty, or there is no class.
    """
    class_names = tuple(entry.name for entry in _folders(root))
    if not class_names:
        raise InputError(
            f"{root}: has no class folders; put one folder of JPEG or PNG files for each class there"
        )
    paths: list[str] = []
    counts = []
    for name in class_names:
        files = sorted(_image_name(entry) for entry in _entries(root / name))
        if not files:
            raise InputError(f"{root / name}: has no images; add images or remove the folder")
        paths += [f"{name}/{file}" for file in files]
        counts.append(len(files))
    return FolderImages(root, tuple(paths)), np.repeat(np.arange(len(class_names)), counts), class_names


def list_image_file(path: Path, root: Path) -> tuple[FolderImages, Int64[np.ndarray, " n"]]:
    """The images of a published list and the class of each image. Each line has a path under `root` and a
    class number. No image is decoded.

    Raises:
        InputError: the list is empty, a line has another form, or an image is missing.
    """
    paths, labels = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal() or len(label) > _MOST_DIGITS:
            raise InputError(f"{path}: line {number} is not a path and a class number: {shown(line)}")
        paths.append(name)
        labels.append(int(label))
    if not paths:
        raise InputError(f"{path}: is empty; it needs a line for each image")
    missing = [name for name in paths if not (root / name).is_file()]
    if missing:
        others = f" ({len(missing) - 1} more are missing too)" if len(missing) > 1 else ""
        raise InputError(f"{root / missing[0]}: is listed in {path.name} but missing{others}")
    return FolderImages(root, tuple(paths)), np.array(labels, np.int64)


def read_characters(
    folder: Path, parts: Sequence[str]
) -> tuple[UInt8[np.ndarray, "n y x 1"], Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Images of part/alphabet/character folders in memory (28 x 28, bright ink on black), the class of each,
    and the names of the classes, such as "images_background/Greek/character01".

    Raises:
        InputError: a file lies among the folders, a file is not an image, or there is no character.
    """
    alphabets = [f"{part}/{entry.name}" for part in parts for entry in _folders(folder / part)]
    names = [f"{alphabet}/{entry.name}" for alphabet in alphabets for entry in _folders(folder / alphabet)]
    if not names:
        raise InputError(f"{folder}: has no characters; each needs a folder in the folder of its alphabet")
    images, counts = [], []
    for name in names:
        files = sorted(_image_name(entry) for entry in _entries(folder / name))
        counts.append(len(files))
        for file in files:
            with _opened(folder / name / file) as image:
                small = image.convert("L").resize((CHARACTER_SIDE,) * 2, Image.Resampling.BOX)
                images.append(255 - np.asarray(small, np.uint8))
    labels = np.repeat(np.arange(len(names)), counts)
    return np.array(images, np.uint8).reshape(-1, CHARACTER_SIDE, CHARACTER_SIDE, 1), labels, tuple(names)


def read_patients(folder: Path, paths: Sequence[str], *, prefix: str) -> Shaped[np.ndarray, " images"]:
    """The patient of each image, from the table `patients.csv` of the folder. Each path in the table starts
    with `prefix`.

    Raises:
        InputError: the table lacks the columns file and patient, or does not name an image.
    """
    columns, rows = read_table(folder / OF_PATIENTS)
    if not {"file", "patient"} <= set(columns):
        raise InputError(
            f"{folder / OF_PATIENTS}: has the columns {', '.join(columns)}; it needs the columns file and "
            "patient"
        )
    patient_of = {row["file"]: row["patient"] for row in rows}
    unnamed = [path for path in paths if not patient_of.get(prefix + path)]
    if unnamed:
        raise InputError(f"{folder / OF_PATIENTS}: no patient of {prefix}{unnamed[0]}; every image has one")
    return np.array([patient_of[prefix + path] for path in paths], np.str_)


def broken_images(images: FolderImages, *, threads: Executor | None = None) -> tuple[str, ...]:
    """Read every file once, at an eighth of its size. Return one line for each file that cannot be read.
    Otherwise a study might draw such a file only after days.
    """
    paths = images.paths
    chunks = [[images.root / path for path in paths[i : i + _CHUNK]] for i in range(0, len(paths), _CHUNK)]
    lines = chain.from_iterable(
        (threads.map if threads is not None else map)(
            lambda chunk: [_problem(path) for path in chunk], chunks
        )
    )
    return tuple(line for line in track(lines, total=len(paths), label="images checked") if line)


def read_image(path: Path) -> Image.Image:
    """Decode a JPEG or PNG as RGB and resize its shorter side to 256 pixels (bilinear; the ratio of the sides
    is kept).

    Raises:
        InputError: the file is damaged or not an image.
    """
    with _opened(path) as image:
        # A JPEG is decoded at the smallest scale of 1/2, 1/4 and 1/8 that is large enough.
        image.draft("RGB", (SHORTER_SIDE, SHORTER_SIDE))
        scale = SHORTER_SIDE / min(image.size)
        size = (max(SHORTER_SIDE, round(image.width * scale)), max(SHORTER_SIDE, round(image.height * scale)))
        return image.convert("RGB").resize(size, Image.Resampling.BILINEAR)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The opened image of a file. An error in opening or decoding is raised as `InputError` with the path."""
    try:
        # from memory: from an open file Pillow would request as many bytes as a damaged length field says
        with Image.open(io.BytesIO(read_bytes(path, limit=MOST_BYTES)), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MOST_PIXELS or max(image.size) > MOST_ELONGATED * min(image.size):
                most = f"{MOST_PIXELS:,} pixels and a long side of {MOST_ELONGATED} short sides are the most"
                raise ValueError(f"{image.width} x {image.height} pixels; {most}")
            yield image
    except _DAMAGE as error:
        said = (
            getattr(error, "strerror", None)
            or str(error).partition("<_io")[0].strip()
            or type(error).__name__
        )
        raise InputError(f"{path}: not a whole JPEG or PNG: {said}; replace it or remove it") from None


def _cut(
    image: Image.Image, *, corner: Sequence[float] | np.ndarray, mirrored: bool
) -> UInt8[np.ndarray, "y x c"]:
    y, x = (
        round(float(share) * (side - CROP))
        for share, side in zip(corner, (image.height, image.width), strict=True)
    )
    pixels = np.asarray(image.crop((x, y, x + CROP, y + CROP)))
    return pixels[:, ::-1] if mirrored else pixels


def _problem(path: Path) -> str:
    try:
        with _opened(path) as image:
            image.draft("L", (1, 1))  # this reads the whole file but computes only an eighth of the pixels
            image.load()
    except InputError as error:
        return str(error)
    return ""


def _folders(folder: Path) -> list["os.DirEntry[str]"]:
    entries = sorted(_entries(folder), key=lambda entry: entry.name)
    for entry in entries:
        if not entry.is_dir():
            raise InputError(
                f"{entry.path}: is a file among the class folders; put each image into its class folder"
            )
    return entries


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        names = os.scandir(folder)
        return [entry for entry in names if not entry.name.startswith(".") and entry.name != OF_PATIENTS]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from None


def _image_name(entry: "os.DirEntry[str]") -> str:
    if os.path.splitext(entry.name)[1].lower() not in _SUFFIXES:
        raise InputError(f"{entry.path}: is not a .jpg, .jpeg or .png file; a class folder holds only images")
    return entry.name

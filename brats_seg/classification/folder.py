"""An image folder in ImageNet's layout: a folder a class, files decoded when drawn."""

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
"""The most bytes of the file of an image."""
MOST_PIXELS = 1 << 26
"""The most pixels of an image; decoded they take 200 MB."""
MOST_ELONGATED = 100
"""Times the short side that the long side may have: the short one is brought to 256 pixels."""
OF_PATIENTS = "patients.csv"
"""In the folder of an image set, beside its other folders: a table with the columns file and patient."""
CHARACTER_SIDE = 28
"""Pixels of a side to which a character of Omniglot is brought, as in Vinyals et al. 2016."""
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow raises over bytes that are no whole image."""
_MOST_DIGITS = 6  # of the number of a class
_CHUNK = 256
"""Files that a thread checks at a time."""


@dataclass(frozen=True)
class Crops:
    """What is cut out of each image of a batch.

    Attributes:
        corners: upper left corner (y, x), each as a share in 0..1 of the room there is.
        mirrored: whether left and right change places.
    """

    corners: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder, decoded one batch at a time: RGB, shorter side 256, a square of 224 cut out.

    Attributes:
        root: the folder of the class folders.
        paths: of each image, relative to `root`.
    """

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, y, x, c) of the images as they are cut."""
        return len(self.paths), CROP, CROP, 3

    def describe(self) -> list[str]:
        """Path and size in bytes of each file."""
        return [f"{path} {os.path.getsize(self.root / path)}" for path in self.paths]

    def decode(
        self, ids: Int64[np.ndarray, " b"], *, crops: Crops, threads: Executor | None
    ) -> UInt8[np.ndarray, "b y x c"]:
        """Decode and cut a batch; Pillow works outside Python's lock, so threads help.

        Raises:
            InputError: a file that is broken or no image, by its path.
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
    """The middle of each image, as in a test."""
    return Crops(np.full((n, 2), 0.5), np.zeros(n, dtype=bool))


def random_crops(n: int, *, seed: int, step: int) -> Crops:
    """Any square and half of the images mirrored, as in training: numbers by Philox, keyed by (seed,
    step).
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
    return Crops(generator.random((n, 2)), generator.random(n) < 0.5)


def list_folder(root: Path) -> tuple[FolderImages, Int64[np.ndarray, " n"], tuple[str, ...]]:
    """The images of class folders, the class of each and the class names, both in the order of their names.
    Nothing is decoded.

    Names that begin with a dot are passed over.

    Raises:
        InputError: a file that is no JPEG or PNG by its name, a folder in a class folder, an empty class, or
            no class at all.
    """
    class_names = tuple(entry.name for entry in _folders(root))
    if not class_names:
        raise InputError(
            f"{root}: no class folders in it; put one folder of JPEG or PNG files for each class there"
        )
    paths: list[str] = []
    counts = []
    for name in class_names:
        files = sorted(_image_name(entry) for entry in _entries(root / name))
        if not files:
            raise InputError(f"{root / name}: no images in it; fill it or remove it")
        paths += [f"{name}/{file}" for file in files]
        counts.append(len(files))
    return FolderImages(root, tuple(paths)), np.repeat(np.arange(len(class_names)), counts), class_names


def list_image_file(path: Path, root: Path) -> tuple[FolderImages, Int64[np.ndarray, " n"]]:
    """The images of a published list (lines of a path under `root` and the number of a class) and the class
    of each. Nothing is decoded.

    Raises:
        InputError: no line, a line that is not so written, or an image that is not there.
    """
    paths, labels = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal() or len(label) > _MOST_DIGITS:
            raise InputError(f"{path}: line {number} is no path and class number: {shown(line)}")
        paths.append(name)
        labels.append(int(label))
    if not paths:
        raise InputError(f"{path}: is empty; it needs a line for each image")
    missing = [name for name in paths if not (root / name).is_file()]
    if missing:
        others = f" ({len(missing) - 1} more are missing too)" if len(missing) > 1 else ""
        raise InputError(f"{root / missing[0]}: is listed in {path.name} and missing{others}")
    return FolderImages(root, tuple(paths)), np.array(labels, np.int64)


def read_characters(
    folder: Path, parts: Sequence[str]
) -> tuple[UInt8[np.ndarray, "n y x 1"], Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Images of part/alphabet/character folders in memory (28 x 28, bright ink on black), the class of each,
    and the names of the classes, such as "images_background/Greek/character01".

    Raises:
        InputError: a file among the folders, one that is no image, or no character at all.
    """
    alphabets = [f"{part}/{entry.name}" for part in parts for entry in _folders(folder / part)]
    names = [f"{alphabet}/{entry.name}" for alphabet in alphabets for entry in _folders(folder / alphabet)]
    if not names:
        raise InputError(f"{folder}: no characters in it; each has a folder in the folder of its alphabet")
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
    """The patient of each image by the table `patients.csv` of the folder; `prefix` stands before each path
    in the table.

    Raises:
        InputError: no columns file and patient, or an image that the table does not name.
    """
    columns, rows = read_table(folder / OF_PATIENTS)
    if not {"file", "patient"} <= set(columns):
        raise InputError(
            f"{folder / OF_PATIENTS}: has the columns {', '.join(columns)}; it needs file and patient"
        )
    patient_of = {row["file"]: row["patient"] for row in rows}
    unnamed = [path for path in paths if not patient_of.get(prefix + path)]
    if unnamed:
        raise InputError(f"{folder / OF_PATIENTS}: no patient of {prefix}{unnamed[0]}; every image has one")
    return np.array([patient_of[prefix + path] for path in paths], np.str_)


def broken_images(images: FolderImages, *, threads: Executor | None = None) -> tuple[str, ...]:
    """Read every file once, at an eighth of its size; one line for each that cannot be. A study may draw such
    a file after days only.
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
    """Decode a JPEG or PNG as RGB with a shorter side of 256 pixels (bilinear; the ratio of the sides is
    kept).

    Raises:
        InputError: broken, or no image.
    """
    with _opened(path) as image:
        # A JPEG is decoded at the least of 1/2, 1/4, 1/8 that is still large enough.
        image.draft("RGB", (SHORTER_SIDE, SHORTER_SIDE))
        scale = SHORTER_SIDE / min(image.size)
        size = (max(SHORTER_SIDE, round(image.width * scale)), max(SHORTER_SIDE, round(image.height * scale)))
        return image.convert("RGB").resize(size, Image.Resampling.BILINEAR)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image of a file; what is wrong with it, also when it is decoded, is told by its path."""
    try:
        # from memory: of an open file Pillow asks as much as a damaged length says
        with Image.open(io.BytesIO(read_bytes(path, limit=MOST_BYTES)), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MOST_PIXELS or max(image.size) > MOST_ELONGATED * min(image.size):
                most = f"{MOST_PIXELS:,} pixels and a long side of {MOST_ELONGATED} short ones are the most"
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
            image.draft("L", (1, 1))  # the whole file is read, an eighth of the pixels computed
            image.load()
    except InputError as error:
        return str(error)
    return ""


def _folders(folder: Path) -> list["os.DirEntry[str]"]:
    entries = sorted(_entries(folder), key=lambda entry: entry.name)
    for entry in entries:
        if not entry.is_dir():
            raise InputError(
                f"{entry.path}: a file among the class folders; each image lies in the folder of its class"
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
        raise InputError(f"{entry.path}: no .jpg, .jpeg or .png; a class folder holds images alone")
    return entry.name

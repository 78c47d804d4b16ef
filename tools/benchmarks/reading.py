"""Five .nii.gz to one normalized float16 volume and its tissue classes; and a label map back to disk."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import torch
from isal import isal_zlib
from monai.transforms import Compose, ConcatItemsd, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd

from benchmarks.cohort import classes_of, find_scans
from benchmarks.measure import Contender, Result, interleave
from brats_seg.bank.normalize import NormalizedCase, normalize, normalize_numpy
from brats_seg.core import files
from brats_seg.scans.case import MODALITIES, Case
from brats_seg.scans.labels import schema_named, to_tissue
from brats_seg.scans.loaded import load_case
from brats_seg.scans.volume import read_volume, write_label_map

PERCENTILES = (0.5, 99.5)
READING = ("ours", "decompression alone", "nibabel + numpy", "nibabel + numpy, lean", "MONAI")


def run(*, work: Path, quick: bool) -> Result:
    """Ours beside nibabel + numpy, MONAI and decompression alone; files in the page cache, as many threads as
    torch has.
    """
    case = find_scans(work, n_cases=1)[0]
    threads = torch.get_num_threads()
    classes = classes_of((case,))

    def ours() -> NormalizedCase:
        return normalize(
            load_case(case, threads=threads), classes=classes, percentiles=PERCENTILES, threads=threads
        )

    _check(case, ours(), classes)
    with ThreadPoolExecutor(threads) as pool:
        reading = (
            ours,
            decompressing(case, pool),
            by_nibabel(case),
            by_nibabel_lean(case, pool),
            by_monai(case),
        )
        contenders = [Contender(name, read) for name, read in zip(READING, reading, strict=True)]
        seconds = interleave([*contenders, *_writing(case, work)], rounds=5 if quick else 15)
    return _result(seconds, {name: path.stat().st_size for name, path in _written(work).items()})


def decompressing(case: Case, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """The limit: unpack the five files, which lie in memory, by isal in threads, into buffers of the right
    size; nothing else.
    """
    packed = [path.read_bytes() for path in _paths(case)]

    def unpack(data: bytes) -> bytes:
        return isal_zlib.decompress(data, wbits=31, bufsize=int.from_bytes(data[-4:], "little"))

    return lambda: list(pool.map(unpack, packed))


def by_nibabel(case: Case) -> Callable[[], object]:
    """What most scripts do: `get_fdata`, then percentiles, clip and z-score over the voxels above 0 by
    NumPy.
    """

    def normalized(path: Path) -> np.ndarray:
        image = _loaded(path).get_fdata()
        brain = image > 0
        clipped = np.clip(image, *np.percentile(image[brain], PERCENTILES))
        return ((clipped - clipped[brain].mean()) / clipped[brain].std() * brain).astype(np.float16)

    *scans, label = _paths(case)
    return lambda: ([normalized(path) for path in scans], _loaded(label).get_fdata().astype(np.uint8))


def by_nibabel_lean(case: Case, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """The same with care: numbers as stored, float32, brain voxels alone, files in threads."""

    def normalized(path: Path) -> np.ndarray:
        image = np.asanyarray(_loaded(path).dataobj)
        brain = image > 0
        inside = image[brain].astype(np.float32)
        inside = inside.clip(*np.percentile(inside, PERCENTILES))
        out = np.zeros(image.shape, np.float16, order="F")
        out[brain] = (inside - inside.mean()) / inside.std()
        return out

    *scans, label = _paths(case)

    def read() -> object:
        label_map = pool.submit(lambda: np.asanyarray(_loaded(label).dataobj).astype(np.uint8))
        return list(pool.map(normalized, scans)), label_map.result()

    return read


def by_monai(case: Case) -> Callable[[], object]:
    """MONAI's dictionary transforms: load, channel first, z-score of the non-zero voxels (no percentiles),
    four channels in one float32.
    """
    names = [*MODALITIES, "label"]
    transform = Compose(
        [
            LoadImaged(keys=names),
            EnsureChannelFirstd(keys=names),
            NormalizeIntensityd(keys=MODALITIES, nonzero=True),
            ConcatItemsd(keys=MODALITIES, name="image"),
        ]
    )
    paths = dict(zip(names, _paths(case), strict=True))
    return lambda: transform(dict(paths))


def _loaded(path: Path) -> Any:
    """nibabel's lazy image; its stubs do not know which kind it is."""
    return nibabel.load(path)


def _paths(case: Case) -> list[Path]:
    if case.label is None:
        raise SystemExit(f"{case.id}: a case with a label is needed")
    return [*(case.modalities[name].path for name in MODALITIES), case.label.path]


def _check(case: Case, ours: NormalizedCase, classes: tuple[str, ...]) -> None:
    """Ours is what the definition in NumPy makes of what nibabel reads; labels outside the brain apart."""
    *scans, label = (read_volume(path)[0] for path in _paths(case))
    stored = [np.asanyarray(_loaded(path).dataobj) for path in _paths(case)]
    same = all(
        np.array_equal(np.sort(a, axis=None), np.sort(b, axis=None))
        for a, b in zip((*scans, label), stored, strict=True)
    )
    brain = np.any([scan != 0 for scan in scans], axis=0)
    crop = tuple(slice(first, first + n) for first, n in zip(ours.origin, ours.image.shape[:3], strict=True))
    for m, scan in enumerate(scans):
        by_numpy = normalize_numpy(scan, brain, percentiles=PERCENTILES)[crop]
        same &= bool(np.allclose(ours.image[..., m], by_numpy, atol=1e-2))
    tissue = to_tissue(label, schema_named(case.schema), classes)[crop]
    same &= ours.label is not None and np.array_equal(ours.label[brain[crop]], tissue[brain[crop]])
    if not same:
        raise SystemExit(f"{case.id}: reading gives other numbers than nibabel and numpy do")


def _written(work: Path) -> dict[str, Path]:
    return {name: work / f"written_{name}.nii.gz" for name in ("ours", "nibabel")}


def _writing(case: Case, work: Path) -> list[Contender]:
    """A label map of the native grid as uint8 .nii.gz, ours and nibabel's, each with and without waiting for
    the disk (fsync).

    `write_label_map` always waits: without, `files._flush` alone is left out. nibabel itself never does.
    """
    assert case.label is not None
    work.mkdir(parents=True, exist_ok=True)
    values, geometry = read_volume(case.label)
    values = values.astype(np.uint8)
    native = np.asanyarray(_loaded(case.label.path).dataobj).astype(np.uint8)
    affine = np.asarray(geometry.affine)
    path, theirs = _written(work).values()

    def ours() -> None:
        write_label_map(path, values, geometry, dtype="uint8")

    def ours_without() -> None:
        with mock.patch.object(files, "_flush"):
            ours()

    def nibabel_without() -> None:
        nibabel.save(nibabel.Nifti1Image(native, affine), theirs)

    def nibabel_with() -> None:
        nibabel_without()
        with theirs.open("rb") as file:
            os.fsync(file.fileno())

    work_of = {
        "ours, fsync": ours,
        "nibabel, fsync": nibabel_with,
        "ours, no fsync": ours_without,
        "nibabel, no fsync": nibabel_without,
    }
    return [Contender(f"write, {name}", write, per_turn=3) for name, write in work_of.items()]


def _result(seconds: dict[str, float], n_bytes: dict[str, int]) -> Result:
    ours, limit = seconds["ours"], seconds["decompression alone"]
    ratios = {name: seconds[name] / ours for name in READING[2:]}
    for flush in ("fsync", "no fsync"):
        ratios[f"nibabel writing a label map, both {flush}"] = (
            seconds[f"write, nibabel, {flush}"] / seconds[f"write, ours, {flush}"]
        )
    rows = {f"{name}, ms": 1000 * taken for name, taken in seconds.items()}
    rows |= {f"written by {name}, bytes": float(n) for name, n in n_bytes.items()}
    return Result(
        "reading", "cases per second, five .nii.gz to normalized float16", 1 / ours, 1 / limit, "nibabel + "
                                                                                                "numpy",
        ratios=ratios, share_of_limit=limit / ours, rows={name: 1 / seconds[name] for name in READING} | rows,
    )  # fmt: skip

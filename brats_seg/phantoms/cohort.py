"""A synthetic cohort that has the classes, the contrasts and the flaws of BraTS scans."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from numpy.random import Generator
from scipy.stats import norm

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.files import write_text
from brats_seg.core.progress import track
from brats_seg.core.shapes import TissueMap
from brats_seg.phantoms.brain import grid_of, grow_brain, push, warp
from brats_seg.phantoms.files import LAYOUTS, write_case, write_index
from brats_seg.phantoms.image import mimics_of, paint, scan
from brats_seg.phantoms.tumor import Lesion, Traits, grow_tumor, place_tumor, together

__all__ = (
    "LAYOUTS", "PHANTOM_VERSION", "Lesion", "PhantomCase", "Traits", "make_case", "make_traits",
    "plan_lesions", "write_cohort",
)  # fmt: skip

PHANTOM_VERSION = 1
"""Must increase with any change of the phantom of a seed: scores on phantoms are valid for one version. A
test checks the numbers of one case.
"""
MIN_SIZE = 48
MANY = 5.0
"""Tumors of a case with metastases."""
FEW = 4
"""From this number of cases on, a cohort is planned as a whole; fewer cases are drawn one by one."""
_MARK = ".phantom"  # a hidden file, which no layout reads


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic case.

    Attributes:
        modalities: t1n, t1c, t2w, t2f; exactly 0 outside the brain, 1 or more in it.
        tissue: indices into `labels.TISSUES`, 255 outside the brain.
    """

    modalities: Int16[np.ndarray, "z y x m"]
    tissue: TissueMap


def make_case(
    seed: int, *, size: int = 96, traits: Traits | None = None, lesion: Lesion | None = None
) -> PhantomCase:
    """Make one case, 1 mm, LPS, (Z, Y, X) = (0.646 size, size, size); the same arguments give the same
    arrays.

    Anatomy, lesion and scanner have a generator each, so a change of `traits` does not change the brain.

    Args:
        seed: 0 or more.
        size: width of a slice in voxels, 48 or more; the brain fills about 0.7 x 0.9 of it (closer than in
            BraTS, to save voxels).
        traits: averages of the case's cohort.
        lesion: the lesion of this case; None draws one.

    Raises:
        UsageError: a size under 48 or a negative seed.
    """
    _check(seed, size)
    traits = traits or Traits()
    anatomy, growth, scanner = np.random.default_rng(seed).spawn(3)
    lesion = lesion or plan_lesions(1, growth, traits=traits)[0]
    grid = warp(grid_of(size), anatomy)
    lesion = lesion._replace(scale=lesion.scale / traits.tumors)
    center = place_tumor(growth)
    radius = float(
        np.cbrt(0.36 * lesion.scale * traits.tumor)
    )  # of a ball; the brain has 1.5 cubic half widths
    brain = grow_brain(grid, push(grid, center, radius=radius, strength=0.3), anatomy)
    mimics, vessels = mimics_of(brain, anatomy, traits=traits)
    tumor = grow_tumor(brain, grid, growth, center=center, lesion=lesion, traits=traits)
    for _ in range(int(traits.tumors) - 1):
        center = place_tumor(growth)
        tumor = together(tumor, grow_tumor(brain, grid, growth, center=center, lesion=lesion, traits=traits))
    clean = paint(brain, tumor, scanner, mimics=mimics, vessels=vessels, traits=traits)
    return PhantomCase(scan(clean, brain.inside, scanner, traits=traits), tumor.tissue)


def make_traits(changes: Mapping[str, float]) -> Traits:
    """Traits with some values set by name. Raises `UsageError` for an unknown trait, or traits that leave no
    brain.
    """
    names = [field.name for field in fields(Traits)]
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise UsageError(f"traits: no trait '{unknown[0]}'; the traits are {', '.join(names)}")
    return Traits(**changes)


def plan_lesions(n_cases: int, rng: Generator, *, traits: Traits) -> tuple[Lesion, ...]:
    """Spread a cohort's lesions over the sizes and kinds evenly, in random order, so that even a few cases
    have the cohort's mean.

    From four cases on, the mean volume is exact, at least one case has no enhancing tumor, and at least one a
    cavity if the traits have any.
    """
    without = rng.permutation(n_cases) < _at_least_one(n_cases, traits.without_enhancing, rng)
    cavity = rng.permutation(n_cases) < _at_least_one(n_cases, traits.cavities, rng)
    scale = np.empty(n_cases)
    for group in (without, ~without):
        n = int(group.sum())
        sizes = np.exp(traits.lesion_sd * norm.ppf((np.arange(n) + rng.uniform(0.2, 0.8, n)) / max(n, 1)))
        mean = sizes.mean() if n > 1 else np.exp(traits.lesion_sd**2 / 2)
        scale[group] = rng.permutation(sizes / mean)
    if n_cases >= FEW:
        scale /= scale.mean()
    return tuple(
        Lesion(float(s), not bool(w), bool(c)) for s, w, c in zip(scale, without, cavity, strict=True)
    )


def write_cohort(
    out: Path,
    *,
    n_cases: int = 8,
    layout: str = "brats2021",
    size: int = 96,
    seed: int = 0,
    traits: Traits | None = None,
) -> list[Path]:
    """Write a cohort in the layout of a BraTS release (a key of `LAYOUTS`); the same arguments give the same
    bytes.

    Returns:
        The folder of each case; the scan file itself if a layout has all cases in one folder (msd,
        nnunet).

    Raises:
        UsageError: an unknown layout, no cases, a size under 48, a negative seed, or a folder with files that
            are not phantoms.
    """
    refuse(
        (layout not in LAYOUTS, f"--layout {layout}: no such layout; the layouts are {', '.join(LAYOUTS)}"),
        (n_cases < 1, f"--cases {n_cases}: a cohort has 1 case or more"),
    )
    _check(seed, size)
    traits = traits or Traits()
    if "resection_cavity" in LAYOUTS[layout].tissues:
        traits = replace(traits, cavities=max(traits.cavities, 0.4))
    if LAYOUTS[layout].many:
        traits = replace(traits, tumors=max(traits.tumors, MANY))
    _claim(out)
    lesions = plan_lesions(n_cases, np.random.default_rng([seed, n_cases]), traits=traits)
    paths = []
    for number, lesion in track(enumerate(lesions, start=1), total=n_cases, label="phantom"):
        case = make_case(seed * 100_000 + number, size=size, traits=traits, lesion=lesion)
        paths.append(
            write_case(
                out,
                number,
                layout=layout,
                modalities=case.modalities,
                tissue=case.tissue,
                enhancing=lesion.enhancing,
            )
        )
    write_index(out, n_cases, layout=layout)
    return paths


def _claim(out: Path) -> None:
    """Make the folder and mark it, so that phantoms overwrite only phantoms."""
    file_names = sorted(path.name for path in out.glob("[!.]*"))
    if file_names and not (out / _MARK).is_file():
        raise UsageError(f"{out}: holds other files ({file_names[0]}); give an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / _MARK, "Written by `brats-seg phantom`, which may write here again.\n")


def _check(seed: int, size: int) -> None:
    refuse(
        (size < MIN_SIZE, f"--size {size}: a phantom is {MIN_SIZE} voxels wide or more"),
        (seed < 0, f"--seed {seed}: a seed is 0 or more"),
    )


def _at_least_one(n_cases: int, share: float, rng: Generator) -> int:
    if n_cases < FEW:
        return int((rng.random(n_cases) < share).sum())
    return max(int(share > 0), round(share * n_cases))

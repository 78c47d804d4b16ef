"""A case to segment -> its normalized brain crop, or the reason why the case is refused."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brats_seg.bank.normalize import NormalizedCase, normalize, off_spacing
from brats_seg.inference.options import PredictOptions
from brats_seg.inference.segmenter import Segmenter
from brats_seg.scans.case import Case, Problem, RefusedError
from brats_seg.scans.check import check_case
from brats_seg.scans.labels import schema_named
from brats_seg.scans.loaded import load_case

_OPTIONS: dict[str, str] = {"skull": "--allow-skull", "same_scan": "--allow-same-scan"}


@dataclass(frozen=True)
class Intake:
    """A case that can be segmented.

    Attributes:
        case: whose scans were read.
        normalized: its brain crop, with a channel for each modality that the networks know.
        warnings: warnings about the case.
    """

    case: Case
    normalized: NormalizedCase
    warnings: tuple[str, ...]


def take_in(case: Case, segmenter: Segmenter, *, options: PredictOptions, target: Path) -> Intake:
    """Read, check and normalize a case as a network needs it. The label of the case, if there is one, is not
    read.

    Args:
        case: of a known label schema.
        segmenter: one of the networks; all need the same input.
        options: which flaws are allowed.
        target: the label map that will be written. Bias fields are kept in the folder `n4` beside it.

    Raises:
        RefusedError: the case lacks a modality, has an error or a flaw, or is of another spacing.
        InputError: a scan that cannot be read.
    """
    missing = [name for name in segmenter.modalities if name not in case.modalities]
    present = tuple(name for name in segmenter.modalities if name in case.modalities)
    if missing and not (options.allow_missing and present):
        raise _refusal(
            case, f"lacks {', '.join(missing)}", f"a scan each for {', '.join(segmenter.modalities)}"
        )
    own = [scan.path for scan in (*case.modalities.values(), *([case.label] if case.label else []))]
    if target.exists() and any(target.samefile(path) for path in own if path.exists()):
        what = "is a file of the case itself, which its label map would replace"
        raise _refusal(case, what, "another output", file=target)
    schema_named(case.schema)
    loaded = load_case(
        replace(case, modalities={name: case.modalities[name] for name in present}, label=None)
    )
    problems = check_case(loaded, digests="none").problems
    _refuse_flawed(problems, allowed=options.allowed)
    geometry = loaded.volumes[present[0]][1]
    if off_spacing(geometry.spacing_mm, wanted_mm=segmenter.spacing_mm) and not options.resample:
        have, want = (
            " x ".join(f"{mm:.3g}" for mm in spacing)
            for spacing in (geometry.spacing_mm, segmenter.spacing_mm)
        )
        what = f"voxels of {have} mm (Z, Y, X), over 5 % off the network's {want} mm"
        raise _refusal(case, what, "that spacing, or --resample")
    normalized = normalize(
        loaded,
        modalities=present,
        percentiles=segmenter.percentiles,
        n4_cache=target.parent / "n4" if segmenter.n4 else None,
        resample_to_mm=segmenter.spacing_mm if options.resample else None,
    )
    warnings = (*(p.what for p in problems), *normalized.warnings, *(f"lacks {name}" for name in missing))
    return Intake(case, _with_all_channels(normalized, present, segmenter.modalities), warnings)


def _refusal(case: Case, what: str, expected: str, *, file: Path | None = None) -> RefusedError:
    return RefusedError(Problem("error", case.id, str(file or case.folder), what, expected))


def _refuse_flawed(problems: Sequence[Problem], *, allowed: Collection[str]) -> None:
    """Refuse a case with errors, and one with a flaw of which `verify` only warns: the label map of such a
    case looks valid, but is wrong.
    """
    errors = [p for p in problems if p.severity == "error"]
    if errors:
        raise RefusedError(replace(errors[0], what="; ".join(p.what for p in errors)))
    flaws = [p for p in problems if p.kind and p.kind not in allowed]
    if flaws:
        options = " ".join(dict.fromkeys(_OPTIONS[p.kind] for p in flaws))
        expected = " and ".join(dict.fromkeys(p.expected for p in flaws))
        raise RefusedError(
            replace(
                flaws[0],
                severity="error",
                what="; ".join(p.what for p in flaws),
                expected=f"{expected}, as in the training; {options} accepts the case",
            )
        )


def _with_all_channels(
    normalized: NormalizedCase, present: Sequence[str], wanted: Sequence[str]
) -> NormalizedCase:
    """The case with a channel of 0 for each modality it lacks, as modality dropout does in training."""
    if len(present) == len(wanted):
        return normalized
    image = np.zeros((*normalized.image.shape[:3], len(wanted)), np.float16)
    image[..., [list(wanted).index(name) for name in present]] = normalized.image
    return replace(normalized, image=image)

"""Data sets that describe themselves: dataset.json (MSD, nnU-Net), BIDS, and a manifest CSV."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from brats_seg.core.errors import InputError, printable, refuse
from brats_seg.core.files import read_json, read_table
from brats_seg.scans.case import MODALITIES, Problem, ScanFile, modality_named, patient_of
from brats_seg.scans.labels import GROSS_TUMOR, MERGED, SCHEMAS, TUMOR_CORE, WHOLE_TUMOR
from brats_seg.scans.volume import SUFFIXES

LABEL = "label"
"""The role of the expert's label map among the pieces of a case."""

_WORDS = (  # the first pattern that matches a name of lower-case letters and spaces
    (r"background|healthy|\bnormal", "healthy"),
    (r"cavity|\brc\b", "resection_cavity"),
    (r"gross|\bgtv\b", GROSS_TUMOR),
    (r"snfh|flair|hyperintens", "edema"),  # "surrounding non-enhancing FLAIR hyperintensity" is not a core
    (r"(necro|ncr).*(non ?enh|net)|(non ?enh|net).*(necro|ncr)", MERGED),
    (r"non ?(contrast ?)?enh|\bnetc?\b", "non_enhancing_core"),
    (r"necro|\bncr\b|cyst|\bcc\b", "necrotic_core"),
    (r"edema|\bed\b", "edema"),
    (r"enhanc|\bet\b|active", "enhancing_core"),
    (r"whole|\bwt\b", "whole"),
    (r"core|\btc\b", "core"),
)
_LONGEST_NAME = 200  # number of characters of a label's name that are read
_BIDS = re.compile(
    r"(?P<subject>sub-[^_]+)_(?:(?P<session>ses-[^_]+)_)?(?P<entities>(?:.*_)?)(?P<suffix>T1w|T2w|FLAIR|dseg)\.nii(?:\.gz)?"
)


BIDS_PREDICTION = "desc-bratsseg"
"""The BIDS entity of label maps that `export` writes. These are predictions, not references."""


@dataclass(frozen=True)
class Piece:
    """One file's part in a case: `role` is a modality or `LABEL`; `schema` is "" if it is unknown."""

    layout: str
    schema: str
    case_id: str
    patient: str
    role: str
    file: ScanFile
    folder: Path


def read_dataset(files: Sequence[Path], problems: list[Problem]) -> list[Piece]:
    """Cases of every folder with a dataset.json: MSD (stacked channels) or nnU-Net (`_0000` files),
    recognized by the file names.
    """
    pieces: list[Piece] = []
    for file in files:
        if file.name == "dataset.json":
            try:
                pieces += _dataset(file, [other for other in files if other.is_relative_to(file.parent)])
            except InputError as error:
                problems.append(
                    Problem(
                        "error",
                        "",
                        str(file),
                        str(error),
                        "channel and label names as MSD or nnU-Net write them",
                    )
                )
    return pieces


def read_bids(files: Sequence[Path], problems: list[Problem], *, root: Path) -> list[Piece]:
    """Cases `sub-*/[ses-*/]anat`; masks (`*_dseg`) in the same folder or anywhere under a derivatives/ below
    `root`.

    A mask under derivatives/ belongs to the scans of its subject and session that are nearest to the top of
    the folder that contains derivatives/ (for example in rawdata/).

    A `*dseg.tsv` with the columns index and name, in the folder of the mask or above, gives the meaning of
    the values.
    """
    tables = [f for f in files if f.name.endswith("dseg.tsv") and BIDS_PREDICTION not in f.name]
    pieces = []
    for file in files:
        match = _BIDS.fullmatch(file.name)
        derived = "derivatives" in file.relative_to(root).parts
        if (
            not match
            or BIDS_PREDICTION in file.name
            or not (file.parent.name == "anat" or derived)
            or (derived and match["suffix"] != "dseg")
        ):
            continue
        subject, session = match["subject"], match["session"]
        case_id = f"{subject}_{session}" if session else subject
        try:
            role, schema = _bids_role(file, match, tables)
        except InputError as error:
            problems.append(Problem("error", case_id, str(file), str(error), "tissue names in its dseg.tsv"))
            continue
        pieces.append(Piece("bids", schema, case_id, subject, role, ScanFile(file), file.parent))
    scanned = {(piece.case_id, piece.folder) for piece in pieces if piece.role != LABEL}
    placed = [replace(piece, folder=_bids_home(piece, scanned, root=root)) for piece in pieces]
    return [piece for piece in placed if (piece.case_id, piece.folder) in scanned]


def read_manifest(
    file: Path,
    problems: list[Problem],
    *,
    schema_of: Callable[[Path], str | None],
    unfit: Literal["error", "warning"] = "error",
) -> list[Piece]:
    """Cases of a CSV file: columns case, t1n, t1c, t2w, t2f; optionally patient, label, schema. Paths are
    relative to the CSV's folder.

    A label without a schema has the schema of the release in its file name (`schema_of`); a case without a
    label has that of its scans.

    Args:
        unfit: severity if the file is not a manifest; a CSV file found in a folder may belong to another
            program.
    """
    pieces: list[Piece] = []
    try:
        _, rows = read_table(file, short_rows="fill")
    except InputError as error:
        problems.append(Problem(unfit, "", str(file), _said(error, file), "a CSV file in UTF-8"))
        return pieces
    if not rows or "case" not in rows[0]:
        problems.append(
            Problem(
                unfit,
                "",
                str(file),
                "has no column 'case' or no row",
                f"the columns case, {', '.join(MODALITIES)}",
            )
        )
        return pieces
    for row in rows:
        try:
            pieces += _row(file, {key: value.strip() for key, value in row.items()}, schema_of=schema_of)
        except InputError as error:
            expected = "a row that names a case, files that exist, and a known schema"
            problems.append(
                Problem("error", printable(row["case"], limit=60), str(file), str(error), expected)
            )
    return pieces


def schema_of_names(names: Mapping[str, Sequence[int]]) -> str:
    """The schema whose values have these tissue (or region) names, such as {"edema": [1], "enhancing tumor":
    [3], ...}.

    If only one core is named ("non-enhancing"), it means both. Overlapping regions are split: whole without
    core is edema. A whole without a core, or a core without enhancing tumor, is a separate class.

    Raises:
        InputError: a name that matches no tissue, or values that match no schema.
    """
    named: dict[str, set[int]] = {}
    for name, members in names.items():
        named.setdefault(_tissue(name), set()).update(members)
    values = _without_regions(named)
    tissues = {value: tissue for tissue, members in values.items() for value in members}
    cores = {"necrotic_core", "non_enhancing_core"} & set(tissues.values())
    if len(cores) == 1:
        tissues = {value: MERGED if tissue in cores else tissue for value, tissue in tissues.items()}
    for schema in SCHEMAS.values():
        if {0: "healthy"} | tissues == dict(schema.values):
            return schema.name
    listed = ", ".join(f"{value} {tissue}" for value, tissue in sorted(tissues.items()))
    raise InputError(f"label values {listed} fit no schema; the schemas are {', '.join(SCHEMAS)}")


def _tissue(name: str) -> str:
    plain = " ".join(re.findall(r"[a-z]+", name[:_LONGEST_NAME].lower()))
    for pattern, tissue in _WORDS:
        if re.search(pattern, plain):
            return tissue
    raise InputError(f"label name '{printable(name, limit=100)}' is not a tissue class")


def _without_regions(values: dict[str, set[int]]) -> dict[str, set[int]]:
    whole, core, enhancing = (values.pop(name, set()) for name in ("whole", "core", "enhancing_core"))
    tissues = {"enhancing_core": enhancing} if enhancing else {}
    if core:
        tissues[MERGED if enhancing else TUMOR_CORE] = core - enhancing
    if whole:
        tissues["edema" if core or enhancing else WHOLE_TUMOR] = whole - core - enhancing
    return values | tissues


def _dataset(file: Path, files: Sequence[Path]) -> list[Piece]:
    """The pieces of one MSD or nnU-Net data set; empty if there are no images in the folder of its
    dataset.json.
    """
    scans = {
        part: _scans_in(files, file.parent / part)
        for part in ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
    }
    images = scans["imagesTr"] | scans["imagesTs"]
    if not images:
        return []
    tree = _json(file)
    channels = _channels(tree.get("channel_names") or tree.get("modality"))
    labels = scans["labelsTr"] | scans["labelsTs"]
    split = "channel_names" in tree or all(re.search(r"_\d{4}$", stem) for stem in images.values())
    schema = _dataset_schema(tree.get("labels"), needed=bool(labels), default="" if split else "msd")
    pieces = []
    for path, stem in images.items():
        if split:
            case_id, _, number = stem.rpartition("_")
            scans_of_roles = [(channels.get(number.lstrip("0") or "0"), ScanFile(path))]
        else:
            case_id, scans_of_roles = (
                stem,
                [(name, ScanFile(path, int(number))) for number, name in channels.items()],
            )
        for role, scan in scans_of_roles:
            if role is not None:
                pieces.append(
                    Piece(
                        "nnunet" if split else "msd",
                        schema,
                        case_id,
                        patient_of(case_id),
                        role,
                        scan,
                        file.parent,
                    )
                )
    case_ids = {piece.case_id for piece in pieces}
    layout = "nnunet" if split else "msd"
    return pieces + [
        Piece(layout, schema, stem, patient_of(stem), LABEL, ScanFile(path), file.parent)
        for path, stem in labels.items()
        if stem in case_ids
    ]


def _scans_in(files: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Scan files directly in a folder -> their names without the suffix."""
    stems = {}
    for file in files:
        suffix = next((s for s in SUFFIXES if file.name.lower().endswith(s)), None)
        if file.parent == folder and suffix:
            stems[file] = file.name[: -len(suffix)]
    return stems


def _said(error: InputError, file: Path) -> str:
    """The text of an error without the file, which is named separately."""
    return str(error).removeprefix(f"{file}: ")


def _json(file: Path) -> dict[str, Any]:
    try:
        tree = read_json(file)
    except InputError as error:
        raise InputError(_said(error, file)) from None
    if not isinstance(tree, dict):
        raise InputError("is not a JSON object")
    return tree


def _channels(names: Any) -> dict[str, str | None]:
    """Channel number -> modality, or None for a channel that is not one of the four modalities."""
    if not isinstance(names, dict):
        raise InputError("names no channels")
    if not all(re.fullmatch(r"[0-9]{1,3}", number) for number in names):
        raise InputError(f"numbers its channels {', '.join(names)}; valid numbers are 0 to 999")
    channels = {number: modality_named(str(name)) for number, name in names.items()}
    if not any(channels.values()):
        raise InputError(
            f"channel names {', '.join(str(name) for name in names.values())} are not modalities"
        )
    return channels


def _dataset_schema(labels: Any, *, needed: bool, default: str) -> str:
    """From {"0": "background", ...} (MSD) or {"background": 0, "whole tumor": [1, 2, 3], ...} (nnU-Net)."""
    if not isinstance(labels, dict) or not labels:
        if needed and not default:
            raise InputError("names no labels")
        return default
    names: dict[str, list[int]] = {}
    try:
        for key, value in labels.items():
            if isinstance(value, str):
                names.setdefault(value, []).append(int(key))
            else:
                names[key] = [int(v) for v in value] if isinstance(value, list) else [int(value)]
    except (TypeError, ValueError, OverflowError):
        raise InputError("has labels that are not whole numbers") from None
    if not all(0 <= value < 256 for values in names.values() for value in values):
        raise InputError("has labels outside 0 to 255")
    return schema_of_names(names)


def _bids_role(file: Path, match: re.Match[str], tables: Sequence[Path]) -> tuple[str, str]:
    if match["suffix"] == "dseg":
        return LABEL, _bids_schema(file, tables)
    if match["suffix"] == "T1w" and re.search(r"(^|_)ce-", match["entities"]):  # not the end of "space-"
        return "t1c", ""
    return str(modality_named(match["suffix"])), ""


def _bids_home(piece: Piece, scanned: Collection[tuple[str, Path]], *, root: Path) -> Path:
    """The anat/ folder of the scans that a raw or derived file belongs to. A derived file keeps its own
    folder if no scans match, or several at the same smallest depth.
    """
    inner = piece.folder.relative_to(root).parts
    if "derivatives" not in inner:
        return piece.folder
    beside = Path(root, *inner[: inner.index("derivatives")])
    homes = [
        folder for case_id, folder in scanned if case_id == piece.case_id and folder.is_relative_to(beside)
    ]
    highest = [home for home in homes if len(home.parts) == min(len(other.parts) for other in homes)]
    return highest[0] if len(highest) == 1 else piece.folder


def _bids_schema(file: Path, tables: Sequence[Path]) -> str:
    stem = file.name.split(".")[0]
    near = [
        table
        for table in tables
        if table.parent in file.parents and (table.stem == stem or not table.name.startswith("sub-"))
    ]
    if not near:
        return ""
    nearest = max(near, key=lambda table: (len(table.parts), table.stem == stem))
    try:
        _, rows = read_table(nearest, delimiter="\t", short_rows="fill")
        names: dict[str, list[int]] = {}
        for row in rows:
            names.setdefault(row["name"], []).append(int(row["index"]))
    except InputError as error:
        raise InputError(f"{nearest.name}: {_said(error, nearest)}") from None
    except (KeyError, ValueError) as error:
        raise InputError(f"{nearest.name} cannot be read: {error}") from None
    return schema_of_names(names)


def _row(file: Path, row: Mapping[str, str], *, schema_of: Callable[[Path], str | None]) -> list[Piece]:
    case_id, schema = row["case"], row.get("schema", "")
    refuse(
        (
            not re.fullmatch(r"\w[\w.+-]*", case_id),
            f"case '{case_id}' cannot name a file; use letters, digits and _ . + -",
        ),
        (schema not in ("", *SCHEMAS), f"schema '{schema}' is unknown; the schemas are {', '.join(SCHEMAS)}"),
        error=InputError,
    )
    files = {role: file.parent / row[role] for role in (*MODALITIES, LABEL) if row.get(role)}
    for role, path in files.items():
        if not _is_file(path):
            raise InputError(f"{role} {path} does not exist")
    if not schema:
        told_by = [files[LABEL]] if LABEL in files else list(files.values())
        schema = next((name for path in told_by if (name := schema_of(path))), "")
    patient = row.get("patient") or patient_of(case_id)
    return [
        Piece("manifest", schema, case_id, patient, role, ScanFile(path), file.parent)
        for role, path in files.items()
    ]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the system, or a folder without permission
        return False

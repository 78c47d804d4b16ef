"""Label maps without a reference -> one page: volumes, and a picture of each case."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brats_seg.core.errors import InputError
from brats_seg.core.files import write_text
from brats_seg.core.progress import track
from brats_seg.reporting.cases import best_slice, case_pictures, see_prediction
from brats_seg.reporting.pages import shared_templates
from brats_seg.reporting.plots import data_uri, png
from brats_seg.scans.case import Case
from brats_seg.scans.labels import common_classes, schema_named
from brats_seg.scans.predictions import read_rows


def write_predictions_page(out: Path, cases: Sequence[Case], *, output: Path) -> Path:
    """Write one self-contained page of the label maps that `predict` wrote.

    Args:
        out: folder of the label maps, with `predictions.csv`.
        cases: their scans; a case without a label map is left out.
        output: the page.

    Raises:
        InputError: no label map of these cases.
    """
    rows = {row["case"]: row for row in read_rows(out)}
    cases = [case for case in cases if case.id in rows]
    if not cases:
        raise InputError(f"{out}: holds no label map of these cases")
    classes = common_classes(schema_named(row["schema"]) for row in rows.values())
    columns = [name.removesuffix("_ml") for name in next(iter(rows.values())) if name.endswith("_ml")]
    content = {
        "folder": out.resolve().name,
        "columns": columns,
        "classes": classes[1:],
        "cards": [
            _card(case, out, rows[case.id], columns) for case in track(cases, total=len(cases), label="page")
        ],
    }
    write_text(output, shared_templates().get_template("predictions.html").render(content))
    return output


def _card(case: Case, out: Path, row: Mapping[str, str], columns: Sequence[str]) -> dict[str, Any]:
    seen = see_prediction(case, out / row["file"], common_classes([schema_named(row["schema"])]))
    z = best_slice(seen)
    rows = [
        (r.name, [(name, picture) for name, picture in r.columns if name != "reference"])
        for r in case_pictures(seen, z=z)
    ]
    return {
        "case": case.id,
        "slice_number": z + 1,
        "n_slices": seen.prediction.shape[0],
        "volumes": {name: float(row[f"{name}_ml"]) if row[f"{name}_ml"] else None for name in columns},
        "warnings": [*filter(None, row["warnings"].split("; ")), *seen.problems],
        "pictures": [
            {"name": name, "images": [(column, data_uri(png(picture))) for column, picture in images]}
            for name, images in rows
        ],
    }

"""Rows of the study of all remedies -> the table of docs/remedies.md and the data beside it.

    brats-seg study run mnist_remedies OUT
    python tools/remedies_table.py OUT

A figure is the balanced accuracy of a remedy minus that of the baseline, or of oversampling, in percentage
points: the mean over the repeats. After "±": half of its 95 % interval over the test images (recalls of the
classes as independent shares; the two networks are not paired, so the interval is rather too wide).
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from brats_seg.core.files import write_text
from brats_seg.studies.study import study_rows

ROOT = Path(__file__).parents[1]
PAGE, DATA = ROOT / "docs" / "remedies.md", ROOT / "docs" / "experiments" / "data" / "mnist_remedies.csv"
COLUMNS = (
    "rho", "repeat", "method", "decision", "networks", "iterations", "diverged", "auc", "balanced_accuracy",
    "recall_per_class", "n_test", "seconds",
)  # fmt: skip
RHO = (250, 1000)
AGAINST = ("baseline", "oversample")


def read_rows(out: Path) -> pd.DataFrame:
    """The rows of a study, with `variance` of the balanced accuracy over the test images."""
    rows = pd.DataFrame(study_rows(out))
    rows = rows[rows["part"] == "test"]
    recalls = np.array(rows["recall_per_class"].tolist())
    n_of_class = rows["n_test"].to_numpy()[:, None] / recalls.shape[1]
    variance = (recalls * (1 - recalls) / n_of_class).sum(axis=1) / recalls.shape[1] ** 2
    return rows.assign(variance=variance, rho=rows["rho"].astype(int), diverged=rows["diverged"].astype(int))


def cell(rows: pd.DataFrame, method: str, *, against: str) -> str:
    """A remedy minus another one, mean over the repeats, with half of the interval."""
    own, other = (rows[rows["method"] == name].set_index("repeat") for name in (method, against))
    if own.empty:
        return ""
    if own["diverged"].any():
        return "diverged"
    difference = (own["balanced_accuracy"] - other["balanced_accuracy"]).mean()
    half = 1.96 * np.sqrt((own["variance"] + other["variance"]).mean())
    text = f"{100 * difference:+.1f} ± {100 * half:.1f}"
    if against == "baseline":
        text += f" ({100 * (own['auc'] - other['auc']).mean():+.1f})"
    return text


def table_line(line: str, rows: pd.DataFrame) -> str:
    """A line of the table with the figures of today; name, cost and paper stay."""
    name, cost, *_, paper = [part.strip() for part in line.split("|")[1:-1]]
    method = name.strip("`")
    cells = []
    for rho in RHO if method in (*rows["method"], "balanced_softmax") else ():
        of_rho = rows[rows["rho"] == rho]
        if method == "baseline":
            own = of_rho[of_rho["method"] == method][["balanced_accuracy", "auc"]].mean() * 100
            cells += [f"{own['balanced_accuracy']:.1f} (AUC {own['auc']:.1f})", ""]
        elif method == "balanced_softmax":
            cells += ["as logit_adjusted", ""]
        else:
            cells += [cell(of_rho, method, against=other) if method != other else "" for other in AGAINST]
    cells = cells or ["scans alone: not measured", "", "", ""]
    return f"| {name} | {cost} | " + " | ".join(cells) + f" | {paper} |"


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    rows = read_rows(parser.parse_args().out)
    recalls = [" ".join(f"{value:.3f}" for value in values) for values in rows["recall_per_class"]]
    rows.assign(recall_per_class=recalls)[list(COLUMNS)].round(5).to_csv(DATA, index=False)
    argmax = rows[rows["decision"] == "argmax"]
    before, rest = PAGE.read_text().split("<!-- gain -->\n")
    table, after = rest.split("<!-- end of gain -->")
    old = table.splitlines()[2:]
    head = [
        "| name | cost | 250: minus baseline | minus `oversample` | 1,000: minus baseline "
        "| minus `oversample` | in its paper |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = [*head, *(table_line(line, argmax) for line in old)]
    write_text(PAGE, before + "<!-- gain -->\n" + "\n".join(lines) + "\n<!-- end of gain -->" + after)
    spread = argmax.groupby(["rho", "method"])["balanced_accuracy"].agg(np.ptp)
    print(f"difference between two repeats, points: {(100 * spread).groupby('rho').describe().round(1)}")
    for rho, of_rho in argmax.groupby("rho"):
        best = of_rho.groupby("method")["balanced_accuracy"].mean().nlargest(6)
        print(f"rho {rho}: {best.round(3).to_dict()}")


if __name__ == "__main__":
    main()

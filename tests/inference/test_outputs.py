from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from brats_seg.core.errors import InputError
from brats_seg.inference.outputs import add_row, color_table, label_file, read_rows, rebuild_table
from brats_seg.scans.labels import SCHEMAS


def test_label_file_has_itk_snaps_columns():
    lines = label_file([SCHEMAS["brats2017"]]).splitlines()
    rows = [line.split(maxsplit=7) for line in lines if not line.startswith("#")]
    assert [(int(r[0]), r[7].strip('"')) for r in rows] == [
        (0, "Clear Label"),
        (1, "necrotic or non enhancing"),
        (2, "edema"),
        (4, "enhancing core"),
    ]
    assert all(0 <= int(c) <= 255 for r in rows for c in r[1:4])


def test_a_value_of_two_meanings_lists_both():
    assert '"edema / necrotic or non enhancing"' in label_file([SCHEMAS["msd"], SCHEMAS["brats2023"]])


def test_a_color_table_has_slicers_columns_and_the_colors_of_the_label_file():
    schema = SCHEMAS["brats2017"]
    rows = [line.split() for line in color_table([schema]).splitlines() if not line.startswith("#")]
    assert rows[0] == ["0", "background", "0", "0", "0", "0"]
    assert [(row[0], row[1], row[5]) for row in rows[1:]] == [
        (str(value), tissue, "255") for value, tissue in sorted(schema.values.items()) if value
    ]
    snap = [line.split() for line in label_file([schema]).splitlines() if not line.startswith("#")]
    assert [row[2:5] for row in rows[1:]] == [row[1:4] for row in snap[1:]]


def row(name: str, **more: str | float) -> dict[str, str | float]:
    return {
        "case": name,
        "file": f"{name}.nii.gz",
        "schema": "brats2017",
        "seconds": 1.0,
        "edema_ml": 2,
        "warnings": "",
    } | more


def write(out: Path, name: str, **more: str | float) -> None:
    (out / f"{name}.nii.gz").touch()
    add_row(out, row(name, **more))


def test_rows_of_parallel_parts_are_all_there(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: write(tmp_path, f"c{i:02d}"), range(12)))
    names = [f"c{i:02d}" for i in range(12)]
    assert [r["case"] for r in rebuild_table(tmp_path)] == names
    (tmp_path / "c03.nii.gz").unlink()
    assert (
        [r["case"] for r in rebuild_table(tmp_path)]
        == [r["case"] for r in read_rows(tmp_path)]
        == names[:3] + names[4:]
    )
    assert list(read_rows(tmp_path)[0]) == ["case", "file", "schema", "seconds", "edema_ml", "warnings"]


def test_a_row_is_appended_and_nothing_before_it_is_written_again(tmp_path):
    write(tmp_path, "b")
    before, labels = (tmp_path / "predictions.csv").read_bytes(), (tmp_path / "labels.txt").stat().st_mtime_ns
    file = (tmp_path / "predictions.csv").stat().st_ino
    write(tmp_path, "a")
    after = (tmp_path / "predictions.csv").read_bytes()
    assert after.startswith(before)
    assert after[len(before) :].count(b"\n") == 1
    assert (tmp_path / "predictions.csv").stat().st_ino == file
    assert (tmp_path / "labels.txt").stat().st_mtime_ns == labels


def test_a_case_made_again_has_one_row_the_newest(tmp_path):
    for ml in (1, 7):
        write(tmp_path, "a", edema_ml=ml)
    assert [r["edema_ml"] for r in read_rows(tmp_path)] == ["7"]
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 3
    rebuild_table(tmp_path)
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 2


def test_a_row_of_other_columns_or_another_schema_brings_table_and_labels_up_to_date(tmp_path):
    write(tmp_path, "b")
    write(tmp_path, "a", schema="msd", necrotic_core_ml=3)
    assert [(r["case"], r["necrotic_core_ml"]) for r in read_rows(tmp_path)] == [("a", "3"), ("b", "")]
    assert '"edema / necrotic or non enhancing"' in (tmp_path / "labels.txt").read_text()


@pytest.mark.parametrize("kept", [1, 4, 20])
def test_a_line_that_a_killed_process_left_half_written_is_dropped(tmp_path, kept):
    write(tmp_path, "a")
    whole = (tmp_path / "predictions.csv").read_bytes()
    write(tmp_path, "b")
    table = (tmp_path / "predictions.csv").read_bytes()
    (tmp_path / "predictions.csv").write_bytes(table[: len(whole) + kept])
    assert [r["case"] for r in read_rows(tmp_path)] == ["a"]
    write(tmp_path, "c", warnings="é\nodd")  # the next row does not join the half line
    assert [r["case"] for r in read_rows(tmp_path)] == ["a", "c"]
    assert [r["case"] for r in rebuild_table(tmp_path)] == ["a", "c"]
    assert read_rows(tmp_path)[1]["warnings"] == "é odd"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"case,file,schema\nA,A.nii.gz,brats2099\n", "has the label schema 'brats2099'; the schemas are "),
        (b"case,file,schema\nA,\xff.nii.gz,brats2017\n", "not text in UTF-8"),
        (b"case,dice\nA,0.5\n", "not a table that `brats-seg predict` wrote"),
        (b"case,file,schema\nA,A.nii.gz\n", "not a table: line 2 has 2 cells for 3 columns"),
    ],
)
def test_a_table_of_something_else_is_one_line(tmp_path, content, said):
    (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"predictions\.csv: .*{said}|predictions\.csv: {said}"):
        read_rows(tmp_path)

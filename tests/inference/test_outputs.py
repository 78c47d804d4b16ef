from concurrent.futures import ThreadPoolExecutor

from brats_seg.inference.outputs import add_row, label_file, read_rows
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


def test_rows_of_parallel_parts_are_all_there(tmp_path):
    def write(i: int) -> None:
        (tmp_path / f"c{i}.nii.gz").touch()
        add_row(tmp_path, {"case": f"c{i}", "file": f"c{i}.nii.gz", "schema": "brats2017", "seconds": 1.0, "edema_ml": i, "warnings": ""})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(12)))
    assert sorted(r["case"] for r in read_rows(tmp_path)) == sorted(f"c{i}" for i in range(12))
    (tmp_path / "c3.nii.gz").unlink()
    write(4)
    assert "c3" not in {r["case"] for r in read_rows(tmp_path)}
    assert list(read_rows(tmp_path)[0]) == ["case", "file", "schema", "seconds", "edema_ml", "warnings"]

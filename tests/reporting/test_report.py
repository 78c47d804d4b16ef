import hashlib
import html
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from tiny_study import Study, tumor, write_nifti

from brats_seg.core import engine
from brats_seg.core.errors import InputError, UsageError
from brats_seg.evaluation.conventions import CONVENTIONS
from brats_seg.evaluation.folders import ScoreOptions, evaluate_folders
from brats_seg.reporting.history import provenance
from brats_seg.reporting.report import _environment, convention_words, write_report


@pytest.fixture(scope="module")
def page(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pages") / "report.html"
    return write_report(
        study.predictions,
        study.reference,
        run=study.run,
        output=output,
        options=ScoreOptions(conventions=("brats2013", "brats2020")),
    ).page


def plain(page: str) -> str:
    """The words of a page, one space between them."""
    without_style = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", without_style)).split())


def test_the_page_needs_nothing_but_itself(page: Path) -> None:
    page_text = page.read_text(encoding="utf-8")
    addresses = re.findall(r"(?:src|href)\s*=\s*\"([^\"]*)\"", page_text)
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert not re.search(r"https?://|@import|url\(|<script", page_text)
    assert page.stat().st_size < 4e6


def test_every_picture_has_words_and_every_link_a_target(page: Path) -> None:
    page_text = page.read_text(encoding="utf-8")
    images = re.findall(r"<img [^>]*>", page_text)
    assert len(images) == 5 + 3 + 4 * 6  # figures of scores, of training, and six slices a case
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    assert all(f'id="{target}"' in page_text for target in re.findall(r'href="#([^"]+)"', page_text))


def test_scores_name_their_convention_n_and_false_positives(page: Path) -> None:
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    first, second = text.split("### Convention brats2020")
    assert "### Convention brats2013" in first
    # active: cases 0 and 1 are right (Dice 1), case 2 is empty in both and left out, case 3 is a false
    # positive and counts 0
    row = next(line for line in first.splitlines() if line.startswith("| active"))
    assert row.startswith("| active | 0.667 ± 0.577 |")
    assert row.endswith("| 2 | 1.000 | 0 | 2 | 1 |")
    assert " | 3 | " in row
    # brats2020: case 2 counts as 1
    assert "| active | 0.750 ± 0.500 |" in second


def test_page_and_twin_have_the_same_numbers(page: Path, study: Study) -> None:
    page_text = plain(page.read_text(encoding="utf-8"))
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    for words in (*study.cases, "0.667 ± 0.577", "0.750 ± 0.500", "t1n saturated, 12 voxels", "2.50"):
        assert words in page_text
        assert words in text
    # case 1: 208 of 256 voxels found: 2 * 208 / (208 + 256) = 0.897
    assert "| BraTS2021_00001 | 0.897 | 0.81 | 1.00 |" in text
    assert "† 0.000" in page_text


def test_intervals_over_few_patients_are_called_too_narrow(page: Path) -> None:
    for text in (
        plain(page.read_text(encoding="utf-8")),
        page.with_suffix(".md").read_text(encoding="utf-8"),
    ):
        assert text.count("With fewer than 6 patients the 95 % intervals are too narrow.") == 1


def test_a_region_that_takes_the_cavity_says_so(tmp_path: Path) -> None:
    name = "BraTS-GLI-00001-100"
    label = tumor(enhancing=True)  # in 2024 the value 4 is the cavity
    write_nifti(tmp_path / "scans" / name / f"{name}-seg.nii.gz", label)
    write_nifti(tmp_path / "out" / f"{name}.nii.gz", label)
    for cavity_in, said in (((), "without edema."), (("core",), "without edema, with the resection cavity.")):
        page = write_report(
            tmp_path / "out",
            tmp_path / "scans",
            output=tmp_path / "report.html",
            options=ScoreOptions(cavity_in=cavity_in),
        ).page
        assert f"the tumor {said}" in plain(page.read_text(encoding="utf-8"))
        assert f"core: the tumor {said}" in page.with_suffix(".md").read_text(encoding="utf-8")


def test_the_same_input_gives_the_same_bytes(page: Path, study: Study, tmp_path: Path) -> None:
    again = write_report(
        study.predictions,
        study.reference,
        run=study.run,
        output=tmp_path / "report.html",
        options=ScoreOptions(conventions=("brats2013", "brats2020")),
    ).page
    assert again.read_bytes() == page.read_bytes()
    assert again.with_suffix(".md").read_bytes() == page.with_suffix(".md").read_bytes()


def test_a_missing_run_leaves_training_out_and_a_missing_prediction_is_a_problem(
    study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for case in study.cases[:2]:
        (out / f"{case}.nii.gz").write_bytes((study.predictions / f"{case}.nii.gz").read_bytes())
    written = write_report(
        out,
        study.reference,
        output=tmp_path / "deep" / "report.html",
        options=ScoreOptions(only=tuple(study.cases[1:3])),
    )
    assert written.exit_code == 1
    page = written.page
    page_text = page.read_text(encoding="utf-8")
    assert 'id="training"' not in page_text
    assert "## Training" not in page.with_suffix(".md").read_text(encoding="utf-8")
    assert "1 case of 1 patient" in page_text
    assert "<b>error</b>" in page_text
    assert study.cases[2] in page_text
    assert study.cases[3] not in page_text


def test_saved_probabilities_add_a_section_and_move_the_numbers_behind_it(
    study: Study, tmp_path: Path
) -> None:
    """Case 0 is predicted right and with certainty; the others have none."""
    out = tmp_path / "out"
    shutil.copytree(study.predictions, out)
    (out / "probabilities").mkdir()
    (out / "probabilities" / "classes.txt").write_text(
        "healthy\nnecrotic_or_non_enhancing\nedema\nenhancing_core\n"
    )
    sure = np.eye(5, dtype=np.float32)[tumor(enhancing=True)][..., [0, 1, 2, 4]]
    write_nifti(out / "probabilities" / f"{study.cases[0]}.nii.gz", sure)
    page = write_report(out, study.reference, output=tmp_path / "report.html", run=study.run).page
    words, twin = plain(page.read_text(encoding="utf-8")), page.with_suffix(".md").read_text(encoding="utf-8")
    for text in (
        "Figure 6. Reliability of the saved probabilities, 1 case together",
        "Table 5. Expected calibration error",
    ):
        assert text in words
    assert "Figure 7. Training loss" in words
    assert "Table 6. The ledger" in words
    # all voxels that count are tumor, whole for certain; core is 64 of the 256, active 32
    assert "| whole | 0.0000 | 1.0000 | 1.0000 |" in twin
    assert "| core | 0.0000 | 0.2500 | 0.2500 |" in twin
    assert "| active | 0.0000 | 0.1250 | 0.1250 |" in twin


def test_the_table_of_another_program_has_no_warnings_of_ours(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(study.predictions, out)
    (out / "predictions.csv").write_text("image,label\n1,7\n")
    written = write_report(out, study.reference, output=tmp_path / "report.html")
    assert written.exit_code == 0
    assert "saturated" not in written.page.read_text(encoding="utf-8")


def test_refusals_name_what_is_wrong(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.html"):
        write_report(study.predictions, study.reference, output=tmp_path / "report.pdf")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no case could be scored"):
        write_report(empty, study.reference, output=tmp_path / "report.html")
    assert list(tmp_path.glob("report*")) == []


def test_conventions_in_words() -> None:
    assert "in reference and prediction is left out; one that is empty in only one" in convention_words(
        CONVENTIONS["brats2013"]
    )
    assert "counts as Dice 0, HD95 373.13 mm" in convention_words(CONVENTIONS["brats2020"])
    assert "Lesion-wise" in convention_words(CONVENTIONS["brats2023"])
    assert all("HD95 is the" in convention_words(rule) for rule in CONVENTIONS.values())


def test_report_and_evaluate_score_with_as_many_threads(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_threads = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, n: int) -> None:
            n_threads.append(n)
            super().__init__(n)

    monkeypatch.setattr(engine, "ThreadPoolExecutor", Counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    write_report(study.predictions, study.reference, output=tmp_path / "report.html")
    evaluate_folders(study.predictions, study.reference, output=tmp_path)
    assert n_threads == [3, 3]


def test_names_and_messages_are_shown_in_markdown_and_not_obeyed() -> None:
    plain_words = _environment().filters["plain"]
    assert plain_words("<b>1</b> a|b `c`\nd & e") == "&lt;b&gt;1&lt;/b&gt; a\\|b 'c'\\nd &amp; e"
    twin = resources.files("brats_seg.reporting").joinpath("report.md").read_text(encoding="utf-8")
    for name in ("row.case", "p.words", "lead", "training.run", "folders.predictions", "folders.reference"):
        assert "{{ " + name + " }}" not in twin


def test_the_line_of_provenance_says_date_config_checkpoint_and_training_cases(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = ["brats-seg", "train", "bank", "run", "--config", "unet2d_cpu"]
    noted = {"command": command, "started": "2026-05-04T03:02:01Z"}
    (run / "environment.json").write_text(json.dumps(noted))
    (run / "ledger_cases.csv").write_text("epoch,case,class,n_draws\n1,a,edema,3\n1,b,edema,2\n2,a,edema,1\n")
    (run / "checkpoint_best.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:12]
    assert provenance(run) == (
        f"Run run · trained on 2026-05-04 · config unet2d_cpu · checkpoint {digest} · 2 training cases"
    )
    assert provenance(None).startswith("The run is not named")

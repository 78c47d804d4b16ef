"""From a scan folder to a scored segmentation, small; what a stage refuses is named and the rest goes on."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch
import yaml

from brats_seg import pipeline
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.build import BuildOptions
from brats_seg.cli import main
from brats_seg.core.config import Config, load_config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import BEST, sha256
from brats_seg.core.runtime import start_runtime
from brats_seg.core.sections import Validation
from brats_seg.core.settings import dump_config
from brats_seg.evaluation.folders import ScoreOptions, evaluate_folders
from brats_seg.inference import segmenter as predicting
from brats_seg.inference.loaded import load_segmenters
from brats_seg.inference.options import PredictOptions, Settings, write_tuning
from brats_seg.models.checkpoint import load_checkpoint, save_checkpoint
from brats_seg.models.restore import restore_network
from brats_seg.models.trained import open_run
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.reporting.report import write_report
from brats_seg.scans.layouts import find_cases
from brats_seg.training.split import make_split

TINY = (
    "network.channels=[8,8,16,16,16,8]",
    "patch.size=[32,32]",
    "training.epochs=2",
    "training.steps=8",
    "training.batch_size=8",
    "training.threads=1",
)


def tiny() -> Config:
    return load_config("demo", overrides=TINY)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, a bank, a run on fold 0 and predictions for it."""
    root = tmp_path_factory.mktemp("pipeline")
    write_cohort(root / "scans", n_cases=6, layout="brats2023", size=48, seed=3)
    assert (
        pipeline.preprocess(
            root / "scans", root / "bank", workers=1, options=BuildOptions(n_folds=3)
        ).exit_code
        == 0
    )
    result = pipeline.train(root / "bank", root / "run", tiny(), fold=0, device="cpu")
    assert (result.ended, result.n_epochs) == ("done", 2)
    assert (
        pipeline.predict(
            root / "run", root / "scans", root / "out", options=PredictOptions(held_out=True, device="cpu")
        ).exit_code
        == 0
    )
    return root


def ends(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return int(ended.value.code or 0)


def test_held_out_cases_are_those_of_the_fold_and_only_they_are_predicted(work: Path) -> None:
    fold = PatchBank(work / "bank", patch_size=(32, 32)).folds[0]
    assert pipeline.held_out_cases(work / "run") == fold
    assert sorted(p.name for p in (work / "out").glob("*.nii.gz")) == [
        f"{case}.nii.gz" for case in sorted(fold)
    ]
    assert list(pd.read_csv(work / "out" / "predictions.csv")["case"]) == sorted(fold)


def test_a_label_map_has_the_sources_grid_values_and_type(work: Path) -> None:
    for path in (work / "out").glob("*.nii.gz"):
        case = path.name.removesuffix(".nii.gz")
        ours, source = nib.load(path), nib.load(next((work / "scans").rglob(f"{case}-seg.nii.gz")))
        assert ours.shape == source.shape
        assert np.array_equal(ours.affine, source.affine)
        assert ours.get_data_dtype() == source.get_data_dtype()
        assert set(np.unique(ours.dataobj)) <= {0, 1, 2, 3}
        image = SimpleITK.ReadImage(str(path))
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), np.asarray(ours.dataobj).T)


def test_scores_name_their_convention_and_their_n(work: Path, tmp_path: Path) -> None:
    held_out = pipeline.held_out_cases(work / "run")
    scored = evaluate_folders(
        work / "out",
        work / "scans",
        output=tmp_path,
        options=ScoreOptions(conventions=("brats2020", "nnunet"), only=tuple(held_out)),
    )
    assert scored.exit_code == 0
    table = pd.read_csv(tmp_path / "scores.csv")
    assert set(table["convention"]) == {"brats2020", "nnunet"}
    assert set(table["case"]) == set(held_out)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["conventions"]["brats2020"]["regions"]["whole"]["dice"]["n"] == len(held_out)


def test_a_reference_against_itself_is_perfect(work: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    for path in (work / "scans").rglob("*-seg.nii.gz"):
        shutil.copy(path, tmp_path / "copies" / path.name.replace("-seg", ""))
    scored = evaluate_folders(tmp_path / "copies", work / "scans", output=tmp_path)
    regions = [s for s in scored.scores if s.region in ("whole", "core", "active")]
    assert len(regions) == 6 * 3
    assert {s.dice for s in regions} == {1.0}
    assert {s.hd95_mm for s in regions} == {0.0}


def test_evaluate_without_all_predictions_names_the_missing_and_exits_1(
    work: Path, tmp_path: Path, capsys
) -> None:
    assert ends("evaluate", str(work / "out"), str(work / "scans"), "--output", str(tmp_path)) == 1
    said = capsys.readouterr().out
    assert said.count(": no prediction") == 6 - len(pipeline.held_out_cases(work / "run"))
    assert (
        ends(
            "evaluate",
            str(work / "out"),
            str(work / "scans"),
            "--output",
            str(tmp_path),
            "--held-out",
            str(work / "run"),
        )
        == 0
    )


def test_a_held_out_case_that_is_nowhere_is_named_and_evaluate_exits_1(
    work: Path, tmp_path: Path, capsys
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(work / "scans", scans)
    shutil.copytree(work / "out", out)
    lost = pipeline.held_out_cases(work / "run")[0]
    shutil.rmtree(scans / lost)
    (out / f"{lost}.nii.gz").unlink()
    assert ends("evaluate", str(out), str(scans), "--held-out", str(work / "run")) == 1
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert [lost in line for line in named] == [True]


def test_a_warning_about_the_folder_of_a_held_out_case_is_kept(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "scans", tmp_path / "scans")
    held_out = pipeline.held_out_cases(work / "run")
    ours, theirs = (
        held_out[0],
        next(path.name for path in (work / "scans").iterdir() if path.is_dir() and path.name not in held_out),
    )
    for case in (ours, theirs):
        shutil.copy(work / "out" / f"{ours}.nii.gz", tmp_path / "scans" / case / "stray.nii.gz")
    predicted = pipeline.predict(
        work / "run",
        tmp_path / "scans",
        tmp_path / "out",
        options=PredictOptions(held_out=True, device="cpu"),
    )
    assert predicted.exit_code == 0
    assert [Path(p.file).name for p in predicted.problems] == [ours]


def test_the_report_is_one_page_with_every_case(work: Path, tmp_path: Path) -> None:
    page = write_report(
        work / "out", work / "scans", output=tmp_path / "report.html", run=work / "run"
    ).page.read_text()
    assert all(case in page for case in pipeline.held_out_cases(work / "run"))
    assert 'src="http' not in page


@pytest.mark.parametrize("suffix", [".nii", ".mha"])
def test_the_file_type_is_a_choice_and_evaluate_reads_each(work: Path, tmp_path: Path, suffix: str) -> None:
    predicted = (
        "predict", str(work / "run"), str(work / "scans"), str(tmp_path), "--held-out", "--file-type", suffix,
        "--device", "cpu",
    )  # fmt: skip
    assert ends(*predicted) == 0
    assert ends("evaluate", str(tmp_path), str(work / "scans"), "--held-out", str(work / "run")) == 0
    theirs = evaluate_folders(
        work / "out",
        work / "scans",
        output=tmp_path / "theirs",
        options=ScoreOptions(only=tuple(pipeline.held_out_cases(work / "run"))),
    )
    assert list(pd.read_csv(tmp_path / "scores.csv")["n_prediction_vox"]) == [
        s.n_prediction_vox for s in theirs.scores
    ]


def test_four_named_files_give_the_folders_prediction(work: Path, tmp_path: Path) -> None:
    case = pipeline.held_out_cases(work / "run")[0]
    files = [
        f"--{m}={next((work / 'scans').rglob(f'{case}-{m}.nii.gz'))}" for m in ("t1n", "t1c", "t2w", "t2f")
    ]
    assert ends("predict-case", str(work / "run"), str(tmp_path / "mine.nii.gz"), *files) == 0
    ours, theirs = nib.load(tmp_path / "mine.nii.gz"), nib.load(work / "out" / f"{case}.nii.gz")
    assert np.array_equal(ours.dataobj, theirs.dataobj)
    assert np.array_equal(ours.affine, theirs.affine)


def test_every_case_can_be_trained_on(work: Path, tmp_path: Path) -> None:
    result = pipeline.train(work / "bank", tmp_path / "run", tiny(), fold=None, device="cpu")
    assert result.best_epoch is None
    with pytest.raises(InputError, match="nothing to tune on"):
        pipeline.tune(tmp_path / "run", work / "bank", device="cpu")
    with pytest.raises(InputError, match="no held-out case"):
        pipeline.held_out_cases(tmp_path / "run")
    predicted = pipeline.predict(
        tmp_path / "run", work / "scans", tmp_path / "out", options=PredictOptions(device="cpu")
    )
    assert len(predicted.predictions) == 6


def with_knobs(run: Path, to: Path, **sections: dict[str, object]) -> Path:
    """The best checkpoint of a run, as if it had been trained with other knobs."""
    checkpoint = load_checkpoint(run / BEST)
    config = checkpoint.parsed_config()
    for name, knobs in sections.items():
        config = config.model_copy(update={name: getattr(config, name).model_copy(update=knobs)})
    to.mkdir()
    save_checkpoint(to / BEST, replace(checkpoint, config=dump_config(config)))
    return to


def voxels(out: Path) -> np.ndarray:
    return np.concatenate(
        [np.asarray(nib.load(path).dataobj).ravel() for path in sorted(out.glob("*.nii.gz"))]
    )


def test_priors_are_corrected_from_what_was_drawn_to_what_the_training_cases_hold(
    work: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(work / "run" / BEST)
    counts = PatchBank(work / "bank", patch_size=(32, 32), cases=checkpoint.train_cases).index.counts
    assert checkpoint.natural_prior == pytest.approx(counts / counts.sum())
    (segmenter,) = load_segmenters(
        (open_run(work / "run"),), runtime=start_runtime(device="cpu"), correct_priors=0.5
    )
    assert segmenter.class_shift == pytest.approx(
        0.5 * np.log(np.divide(checkpoint.natural_prior, checkpoint.effective_prior))
    )
    assert (
        ends(
            "predict",
            str(work / "run"),
            str(work / "scans"),
            str(tmp_path),
            "--held-out",
            "--correct-priors",
            "1",
        )
        == 0
    )
    assert np.count_nonzero(voxels(tmp_path)) < np.count_nonzero(voxels(work / "out"))


def test_a_loss_without_a_prior_cannot_be_corrected(work: Path, tmp_path: Path, capsys) -> None:
    run = with_knobs(work / "run", tmp_path / "focal", loss={"kind": "focal"})
    assert (
        ends("predict", str(run), str(work / "scans"), str(tmp_path / "out"), "--correct-priors", "0.5") == 2
    )
    assert "loss.kind 'focal' has no known prior" in capsys.readouterr().err
    assert pipeline.tune(run, work / "bank", device="cpu")[0].correct_priors == 0  # thresholds alone


def test_tuning_opens_the_inner_cases_alone_and_predict_uses_what_it_found(
    work: Path, tmp_path: Path, capsys
) -> None:
    run, bank = with_knobs(work / "run", tmp_path / "run"), tmp_path / "bank"
    shutil.copytree(work / "bank", bank)
    inner = load_checkpoint(run / BEST).inner_cases
    for folder in (bank / "cases").iterdir():
        if folder.name not in inner:
            shutil.rmtree(folder)
    before = sorted(p.name for p in run.iterdir())
    assert ends("tune", str(run), str(bank)) == 0
    assert f"on {len(inner)} inner case" in capsys.readouterr().out
    assert sorted(p.name for p in run.iterdir()) == sorted([*before, "tuned.yaml"])
    tuned = yaml.safe_load((run / "tuned.yaml").read_text())
    assert tuned["score"] >= tuned["score_before"]
    names = ("correct_priors", "min_component_mm3", "min_enhancing_mm3")
    by_hand = Settings(**{name: tuned[name] for name in names})
    pipeline.predict(
        run, work / "scans", tmp_path / "a", options=PredictOptions(held_out=True, tuned=True, device="cpu")
    )
    pipeline.predict(
        run,
        work / "scans",
        tmp_path / "b",
        options=PredictOptions(held_out=True, device="cpu", settings=by_hand),
    )
    assert np.array_equal(voxels(tmp_path / "a"), voxels(tmp_path / "b"))
    with pytest.raises(UsageError, match="--tuned: settings are found for one network"):
        pipeline.predict(
            run,
            work / "scans",
            tmp_path / "a",
            options=PredictOptions(tuned=True, also=(work / "run",)),
        )
    with pytest.raises(InputError, match=r"tuned\.yaml: does not exist"):
        pipeline.predict(work / "run", work / "scans", tmp_path / "a", options=PredictOptions(tuned=True))
    (bank / "bank.json").write_text((bank / "bank.json").read_text() + " ")
    with pytest.raises(InputError, match="was trained on the bank with"):
        pipeline.tune(run, bank)


def test_inner_cases_of_several_runs_are_pooled_without_those_that_a_run_held_out(
    work: Path, tmp_path: Path, capsys
) -> None:
    """Two folds' runs of one bank: an inner case of the second that the first held out must not decide the
    first's settings.
    """
    first = with_knobs(work / "run", tmp_path / "first")
    checkpoint = load_checkpoint(first / BEST)
    held, inner = checkpoint.held_out_cases, checkpoint.inner_cases
    second = tmp_path / "second"
    second.mkdir()
    fresh = [case for case in checkpoint.train_cases if case not in inner][:1]
    save_checkpoint(
        second / BEST, replace(checkpoint, inner_cases=(*fresh, *held[:1]), held_out_cases=tuple(inner))
    )
    assert (
        ends("tune", str(first), str(work / "bank"), "--also", str(second), "--objective", "lesion_dice") == 0
    )
    assert "of 2 runs" in capsys.readouterr().out
    tunings = [yaml.safe_load((run / "tuned.yaml").read_text()) for run in (first, second)]
    assert [t["n_cases"] for t in tunings] == [
        len(inner) + 1,
        2,
    ]  # without the held-out case; without the first's inner cases
    assert [t["objective"] for t in tunings] == ["lesion_dice"] * 2
    assert [t["checkpoint"] for t in tunings] == [sha256(run / BEST) for run in (first, second)]
    with pytest.raises(UsageError, match="a run is given twice"):
        pipeline.tune(first, work / "bank", also=(first,))


def test_region_thresholds_of_a_tuning_are_what_predict_cuts_at(work: Path, tmp_path: Path) -> None:
    run = with_knobs(work / "run", tmp_path / "run")
    (tuning,) = pipeline.tune(run, work / "bank", device="cpu")
    for threshold in (0.9999999, 1e-6):
        changed = tuning.model_copy(update={"threshold_whole": threshold, "correct_priors": 0.0})
        write_tuning(run, changed)
        pipeline.predict(
            run,
            work / "scans",
            tmp_path / f"{threshold}",
            options=PredictOptions(held_out=True, tuned=True, device="cpu"),
        )
    little, much = (voxels(tmp_path / f"{threshold}") for threshold in (0.9999999, 1e-6))
    assert np.count_nonzero(little) < 0.1 * np.count_nonzero(much)


def test_cases_that_lack_modalities_are_for_networks_trained_so(work: Path, tmp_path: Path, capsys) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(work / "scans", scans)
    case = pipeline.held_out_cases(work / "run")[0]
    next(scans.rglob(f"{case}-t2w.nii.gz")).unlink()
    assert ends("predict", str(work / "run"), str(scans), str(tmp_path / "out"), "--allow-missing") == 2
    assert "augment.modality_dropout" in capsys.readouterr().err
    run = with_knobs(work / "run", tmp_path / "run", augment={"modality_dropout": 0.2})
    predicted = pipeline.predict(
        run, scans, tmp_path / "out", options=PredictOptions(held_out=True, allow_missing=True, device="cpu")
    )
    assert predicted.exit_code == 0
    assert {p.case: p.warnings for p in predicted.predictions}[case] == ("lacks t2w",)
    others = [p.path.name for p in predicted.predictions if p.case != case]
    assert all(
        (tmp_path / "out" / name).read_bytes() == (work / "out" / name).read_bytes() for name in others
    )
    refused = pipeline.predict(
        run, scans, tmp_path / "out2", options=PredictOptions(held_out=True, device="cpu")
    )
    assert [p.case for p in refused.problems] == [case]


def test_saved_probabilities_are_calibrated_against_the_reference(work: Path, tmp_path: Path, capsys) -> None:
    run, scans, out = str(work / "run"), str(work / "scans"), str(tmp_path / "out")
    assert ends("predict", run, scans, out, "--held-out", "--save-probabilities") == 0
    assert ends("evaluate", out, scans, "--held-out", run) == 0
    assert "expected calibration error: whole 0." in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    n_cases, classes = len(pipeline.held_out_cases(work / "run")), summary["confusion"]["classes"]
    assert summary["calibration"]["n_cases"] == n_cases
    assert np.shape(summary["confusion"]["n_voxels"]) == (len(classes), len(classes))


def test_windows_can_be_asked_for(work: Path, tmp_path: Path) -> None:
    assert (
        ends(
            "predict",
            str(work / "run"),
            str(work / "scans"),
            str(tmp_path),
            "--held-out",
            "--inference",
            "windowed",
        )
        == 0
    )
    ours, whole = voxels(tmp_path), voxels(work / "out")
    assert not np.array_equal(ours, whole)
    assert (ours == whole).mean() > 0.9


def test_a_case_one_of_several_networks_was_trained_on_is_not_held_out(work: Path, tmp_path: Path) -> None:
    pipeline.train(work / "bank", tmp_path / "run1", tiny(), fold=1, device="cpu")
    with pytest.raises(UsageError, match="average runs of one fold"):
        pipeline.predict(
            work / "run",
            work / "scans",
            tmp_path / "out",
            options=PredictOptions(held_out=True, also=(tmp_path / "run1",), device="cpu"),
        )


def test_a_prior_that_the_ledger_does_not_know_is_not_corrected(work: Path, tmp_path: Path) -> None:
    config = load_config("demo", overrides=(*TINY, "loss.outside=ignore", "training.epochs=1"))
    pipeline.train(work / "bank", tmp_path / "run", config, fold=0, device="cpu")
    with pytest.raises(UsageError, match=r"loss\.outside=ignore"):
        pipeline.predict(
            tmp_path / "run",
            work / "scans",
            tmp_path / "out",
            options=PredictOptions(settings=Settings(correct_priors=0.5), device="cpu"),
        )
    assert pipeline.tune(tmp_path / "run", work / "bank", device="cpu")[0].correct_priors == 0


def test_a_fold_that_is_not_there_names_those_that_are(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--fold 7: the bank has folds 0\.\.2"):
        pipeline.train(work / "bank", tmp_path / "run", tiny(), fold=7)


def test_the_inner_cases_of_a_fold_are_those_of_the_next_fold_or_none(work: Path, tmp_path: Path) -> None:
    bank = PatchBank(work / "bank", patch_size=(16, 16))
    every = {case.id for case in bank.cases}
    after = Validation(cases="next_fold", metric="last")
    for fold, following in ((0, 1), (1, 2), (2, 0)):
        split = make_split(bank, fold=fold, validation=after, seed=0)
        assert (split.held_out, split.inner) == (bank.folds[fold], bank.folds[following])
        assert set(split.train) == every - {*split.held_out, *split.inner}
    whole = make_split(bank, fold=1, validation=Validation(cases="none", metric="last"), seed=0)
    assert whole.inner == ()
    assert set(whole.train) == every - set(bank.folds[1])
    pipeline.preprocess(work / "scans", tmp_path / "two", workers=1, options=BuildOptions(n_folds=2))
    two = PatchBank(tmp_path / "two", patch_size=(16, 16))
    with pytest.raises(UsageError, match=r"'next_fold' needs 3 folds or more; .*two has 2"):
        make_split(two, fold=0, validation=after, seed=0)


def test_a_used_run_folder_is_refused_without_resume(work: Path, capsys) -> None:
    assert (
        ends(
            "train", str(work / "bank"), str(work / "run"), "--config", "demo", "--set", "patch.size=[32,32]"
        )
        == 2
    )
    assert "--resume" in capsys.readouterr().err


# Two stages as one


@pytest.fixture(scope="module")
def stages(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector and a classifier on fold 0, and the run they were composed to."""
    root = tmp_path_factory.mktemp("cascade")
    for name, task in (("detector", "healthy_or_tumor"), ("classifier", "tumor")):
        config = load_config("demo", overrides=(*TINY, f"task.classes={task}"))
        pipeline.train(work / "bank", root / name, config, fold=0, device="cpu")
    assert ends("cascade", str(root / "detector"), str(root / "classifier"), str(root / "run")) == 0
    return root


def test_a_stage_run_knows_its_classes_alone(stages: Path, work: Path) -> None:
    detector, classifier = (load_checkpoint(stages / name / BEST) for name in ("detector", "classifier"))
    counts = PatchBank(work / "bank", patch_size=(32, 32), cases=detector.train_cases).index.counts
    assert detector.classes == ("healthy", "tumor")
    assert detector.natural_prior == pytest.approx(
        [counts[0] / counts.sum(), counts[1:].sum() / counts.sum()]
    )
    assert classifier.classes == ("necrotic_or_non_enhancing", "edema", "enhancing_core")
    assert classifier.natural_prior == pytest.approx(counts[1:] / counts[1:].sum())
    drawn = pd.read_csv(stages / "classifier" / "ledger.csv")
    assert set(drawn["class"]) == {*classifier.classes, "outside"}
    assert drawn[drawn["class"] == "outside"]["voxel_share"].between(0.1, 1).all()  # healthy tissue among it


def test_a_composed_run_is_a_run_like_any_other(stages: Path, work: Path, tmp_path: Path) -> None:
    checkpoint, run = load_checkpoint(stages / "run" / BEST), str(stages / "run")
    detector, classifier = (load_checkpoint(stages / name / BEST) for name in ("detector", "classifier"))
    assert checkpoint.classes == ("healthy", *classifier.classes)
    assert checkpoint.held_out_cases == detector.held_out_cases
    counts = PatchBank(work / "bank", patch_size=(32, 32), cases=checkpoint.train_cases).index.counts
    assert checkpoint.natural_prior == pytest.approx(counts / counts.sum())
    assert checkpoint.effective_prior == pytest.approx(
        [detector.effective_prior[0], *(detector.effective_prior[1] * np.array(classifier.effective_prior))]
    )
    config = load_config(stages / "run" / "config.yaml")
    assert (config.network.name, config.task.classes) == ("cascade", "all")
    assert dump_config(config) == checkpoint.config

    scans, device = str(work / "scans"), ("--device", "cpu")
    assert ends("tune", run, str(work / "bank"), *device) == 0
    for name, options in {
        "plain": (),
        "tuned": ("--tuned",),
        "corrected": ("--correct-priors", "1"),
        "mirrored": ("--tta",),
    }.items():
        assert ends("predict", run, scans, str(tmp_path / name), "--held-out", *options, *device) == 0
        assert sorted(p.name for p in (tmp_path / name).glob("*.nii.gz")) == [
            f"{c}.nii.gz" for c in sorted(checkpoint.held_out_cases)
        ]
    assert np.count_nonzero(voxels(tmp_path / "corrected")) < np.count_nonzero(voxels(tmp_path / "plain"))
    assert ends("evaluate", str(tmp_path / "plain"), scans, "--held-out", run) == 0
    assert (
        ends(
            "report",
            str(tmp_path / "plain"),
            scans,
            "--run",
            run,
            "--held-out",
            run,
            "--output",
            str(tmp_path / "r.html"),
        )
        == 0
    )
    assert (
        ends(
            "predict", run, scans, str(tmp_path / "both"), "--held-out", "--also", str(work / "run"), *device
        )
        == 0
    )


def test_a_cascade_multiplies_the_probabilities_of_its_stages(stages: Path, work: Path) -> None:
    runtime = start_runtime(device="cpu", precision="float32")
    x = torch.randn(2, 4, 32, 32)
    detector, classifier, both = (
        restore_network(load_checkpoint(stages / name / BEST), stages / name / BEST, runtime=runtime)
        for name in ("detector", "classifier", "run")
    )
    first, second = (torch.softmax(network(x), 1) for network in (detector, classifier))
    torch.testing.assert_close(both(x).exp(), torch.cat([first[:, :1], first[:, 1:] * second], 1))


@pytest.mark.parametrize("name", ["detector", "classifier"])
def test_a_stage_alone_is_not_predicted_with(
    stages: Path, work: Path, tmp_path: Path, name: str, capsys
) -> None:
    assert (
        ends("predict", str(stages / name), str(work / "scans"), str(tmp_path / "out"), "--device", "cpu")
        == 2
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "brats-seg cascade DETECTOR CLASSIFIER RUN" in said
    assert not (tmp_path / "out").exists()
    assert ends("tune", str(stages / name), str(work / "bank"), "--device", "cpu") == 2


def test_stages_that_do_not_fit_are_refused(stages: Path, work: Path, tmp_path: Path, capsys) -> None:
    detector, classifier = str(stages / "detector"), str(stages / "classifier")
    assert ends("cascade", classifier, detector, str(tmp_path / "run")) == 2
    assert (
        "the detector of a cascade is a run with task.classes=healthy_or_tumor; this one has tumor"
        in capsys.readouterr().err
    )
    assert ends("cascade", detector, str(work / "run"), str(tmp_path / "run")) == 2
    assert (
        "the classifier of a cascade is a run with task.classes=tumor; this one has all"
        in capsys.readouterr().err
    )
    assert ends("cascade", detector, classifier, str(stages / "run")) == 2
    assert "contains a run already" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"fold": 1}, "fold as"), ({"bank": "abc"}, "bank"), ({"train_cases": ("X",)}, "training cases")],
)
def test_stages_of_another_fold_or_bank_are_refused(
    stages: Path, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    other = replace(load_checkpoint(stages / "classifier" / BEST), **changed)  # type: ignore[arg-type]
    (tmp_path / "other").mkdir()
    save_checkpoint(tmp_path / "other" / BEST, other)
    with pytest.raises(
        InputError, match=f"does not have the same {said}.*one bank with one --fold, training.seed and"
    ):
        pipeline.compose(stages / "detector", tmp_path / "other", tmp_path / "run")


def test_a_cascade_of_a_loss_without_a_prior_has_none(stages: Path, tmp_path: Path) -> None:
    focal = with_knobs(stages / "classifier", tmp_path / "focal", loss={"kind": "focal"})
    checkpoint = load_checkpoint(pipeline.compose(stages / "detector", focal, tmp_path / "run"))
    assert checkpoint.parsed_config().loss.kind == "focal"
    with pytest.raises(UsageError, match="'focal' has no known prior"):
        load_segmenters(
            (open_run(tmp_path / "run"),), runtime=start_runtime(device="cpu"), correct_priors=0.5
        )


def test_regions_are_saved_averaged_and_tuned_as_class_probabilities(work: Path, tmp_path: Path) -> None:
    region = with_knobs(work / "run", tmp_path / "region", loss={"kind": "region"})
    pipeline.predict(
        region, work / "scans", tmp_path / "alone", options=PredictOptions(held_out=True, device="cpu")
    )
    pipeline.predict(
        region,
        work / "scans",
        tmp_path / "saved",
        options=PredictOptions(held_out=True, device="cpu", save_probabilities=True),
    )
    pipeline.predict(
        region,
        work / "scans",
        tmp_path / "twice",
        options=PredictOptions(held_out=True, device="cpu", also=(region,)),
    )
    assert np.array_equal(voxels(tmp_path / "saved"), voxels(tmp_path / "alone"))
    assert np.array_equal(voxels(tmp_path / "twice"), voxels(tmp_path / "alone"))
    for path in (tmp_path / "saved" / "probabilities").glob("*.nii.gz"):
        assert np.allclose(nib.load(path).get_fdata().sum(axis=-1), 1, atol=1e-5)
    mixed = pipeline.predict(
        region,
        work / "scans",
        tmp_path / "mixed",
        options=PredictOptions(held_out=True, device="cpu", also=(work / "run",)),
    )
    assert mixed.exit_code == 0
    assert 0 <= pipeline.tune(region, work / "bank", device="cpu")[0].score <= 1


# One case from named files


def test_a_cavity_is_written_where_the_network_knows_one(work: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(work / "run" / BEST)
    sure = {  # a fifth class, which is the likeliest everywhere
        "final_conv.weight": torch.nn.functional.pad(
            checkpoint.weights["final_conv.weight"], (0, 0) * 3 + (0, 1)
        ),
        "final_conv.bias": torch.nn.functional.pad(checkpoint.weights["final_conv.bias"], (0, 1), value=1e4),
    }
    (tmp_path / "run").mkdir()
    knows = replace(
        checkpoint,
        weights={**checkpoint.weights, **sure},
        classes=(*checkpoint.classes, "resection_cavity"),
        effective_prior=None,
        natural_prior=None,
    )
    save_checkpoint(tmp_path / "run" / BEST, knows)
    (case,) = find_cases(work / "scans").cases[:1]
    files = {name: scan.path for name, scan in case.modalities.items()}
    assert (
        pipeline.predict_files(
            tmp_path / "run", tmp_path / "mine.nii.gz", files, options=PredictOptions(device="cpu")
        ).exit_code
        == 0
    )
    assert np.unique(nib.load(tmp_path / "mine.nii.gz").dataobj).tolist() == [0, 4]


def test_fewer_than_four_files_need_a_network_for_that(work: Path, tmp_path: Path, capsys) -> None:
    case = pipeline.held_out_cases(work / "run")[0]
    run = with_knobs(work / "run", tmp_path / "dropped", augment={"modality_dropout": 0.2})
    files = [f"--{m}={next((work / 'scans').rglob(f'{case}-{m}.nii.gz'))}" for m in ("t1c", "t2f")]
    out = tmp_path / "mine.nii.gz"
    assert ends("predict-case", str(run), str(out), *files) == 2
    assert "predict-case: needs --t1n, --t2w; --allow-missing accepts" in capsys.readouterr().err
    assert ends("predict-case", str(run), str(out), "--allow-missing") == 2
    assert ends("predict-case", str(work / "run"), str(out), *files, "--allow-missing") == 2
    assert "modality_dropout 0" in capsys.readouterr().err
    assert ends("predict-case", str(run), str(out), *files, "--allow-missing") == 0
    copied = tmp_path / "scans" / case
    shutil.copytree(next((work / "scans").rglob(f"{case}-t1n.nii.gz")).parent, copied)
    for name in ("t1n", "t2w"):
        next(copied.glob(f"*-{name}.nii.gz")).unlink()
    assert (
        pipeline.predict(
            run,
            tmp_path / "scans",
            tmp_path / "out",
            options=PredictOptions(allow_missing=True, device="cpu"),
        ).exit_code
        == 0
    )
    assert np.array_equal(nib.load(out).dataobj, nib.load(tmp_path / "out" / f"{case}.nii.gz").dataobj)


def test_one_case_takes_the_tuned_settings_too(work: Path, tmp_path: Path) -> None:
    run = with_knobs(work / "run", tmp_path / "run")
    case, epoch = pipeline.held_out_cases(run)[0], load_checkpoint(run / BEST).epoch
    numbers = {
        "epoch": epoch,
        "checkpoint": sha256(run / BEST),
        "n_cases": 1,
        "score": 0.5,
        "score_before": 0.4,
    }
    settings = {"correct_priors": 0.7, "min_component_mm3": 20.0, "min_enhancing_mm3": 0.0}
    (run / "tuned.yaml").write_text(yaml.safe_dump(settings | numbers))
    files = [
        f"--{m}={next((work / 'scans').rglob(f'{case}-{m}.nii.gz'))}" for m in ("t1n", "t1c", "t2w", "t2f")
    ]
    assert (
        ends("predict-case", str(run), str(tmp_path / "mine.nii.gz"), *files, "--tuned", "--device", "cpu")
        == 0
    )
    pipeline.predict(
        run, work / "scans", tmp_path / "out", options=PredictOptions(held_out=True, tuned=True, device="cpu")
    )
    ours = np.asarray(nib.load(tmp_path / "mine.nii.gz").dataobj)
    assert np.array_equal(ours, nib.load(tmp_path / "out" / f"{case}.nii.gz").dataobj)
    assert not np.array_equal(ours, nib.load(work / "out" / f"{case}.nii.gz").dataobj)


# What a machine runs out of, and what is damaged


def test_a_case_too_large_for_the_memory_is_one_line_and_the_next_is_done(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    real, calls = predicting.label_map, iter(range(99))

    def full_once(*args: object, **more: object) -> np.ndarray:
        if next(calls) == 0:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of 16 GiB"
            )
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(predicting, "label_map", full_once)
    assert (
        ends(
            "predict", str(work / "run"), str(work / "scans"), str(tmp_path), "--held-out", "--device", "cpu"
        )
        == 1
    )
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert "does not fit into memory" in said[0]
    assert "--inference windowed" in said[0]
    assert len(list(tmp_path.glob("*.nii.gz"))) == len(pipeline.held_out_cases(work / "run")) - 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_does_not_suffice_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "train", full)
    assert ends("train", str(work / "bank"), str(work / "other"), "--config", "demo") == 1
    assert capsys.readouterr().err.startswith("brats-seg: not enough memory: ")
    monkeypatch.setattr(pipeline, "train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", str(work / "bank"), str(work / "other"), "--config", "demo"])


def test_a_report_that_lists_an_error_exits_1(work: Path, tmp_path: Path, capsys) -> None:
    wanted = (
        "report",
        str(work / "out"),
        str(work / "scans"),
        "--run",
        str(work / "run"),
        "--output",
        str(tmp_path / "r.html"),
    )
    assert ends(*wanted) == 1
    assert (tmp_path / "r.html").is_file()
    assert ends(*wanted, "--held-out", str(work / "run")) == 0
    shutil.copytree(work / "run", tmp_path / "run")
    (tmp_path / "run" / "epochs.csv").write_text((work / "run" / "epochs.csv").read_text()[:-30])
    capsys.readouterr()
    damaged = [argument if argument != str(work / "run") else str(tmp_path / "run") for argument in wanted]
    assert ends(*damaged) == 1
    assert f"{tmp_path / 'run' / 'epochs.csv'}: not a table: line " in capsys.readouterr().err


def test_bad_cases_are_named_and_the_others_are_done(work: Path, tmp_path: Path, capsys) -> None:
    """A truncated file, a text file, NaN, a missing modality and a label 7: five lines, one good case,
    nothing half-written.
    """
    scans = tmp_path / "scans"
    shutil.copytree(work / "scans", scans)
    folders = sorted(p for p in scans.iterdir() if p.is_dir())
    truncated, text, nan, lacking, seven, good = folders
    cut = next(truncated.glob("*-t1c.nii.gz"))
    cut.write_bytes(cut.read_bytes()[:2000])
    next(text.glob("*-t2f.nii.gz")).write_text("not a scan")
    first = next(nan.glob("*-t1n.nii.gz"))
    image = nib.load(first)
    nib.save(
        nib.Nifti1Image(
            np.where(np.arange(image.shape[0])[:, None, None] == 9, np.nan, image.get_fdata()), image.affine
        ),
        first,
    )
    next(lacking.glob("*-t2w.nii.gz")).unlink()
    mask = next(seven.glob("*-seg.nii.gz"))
    image = nib.load(mask)
    wrong = np.asarray(image.dataobj).copy()
    wrong[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(wrong, image.affine), mask)

    assert ends("preprocess", str(scans), str(tmp_path / "bank"), "--workers", "1", "--folds", "2") == 1
    said = capsys.readouterr().out
    for bad in (truncated, text, nan, lacking, seven):
        lines = [line for line in said.splitlines() if line.startswith("error") and bad.name in line]
        assert len(lines) == 1, bad.name
        assert "expected" in lines[0]
    assert [case.id for case in PatchBank(tmp_path / "bank", patch_size=(32, 32)).cases] == [good.name]

    assert ends("predict", str(work / "run"), str(scans), str(tmp_path / "out")) == 1
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == sorted(
        f"{c.name}.nii.gz" for c in (seven, good)
    )
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".part")]


def test_a_header_that_claims_a_million_million_voxels_is_refused_before_anything_is_allocated(
    work: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "scans" / "case"
    shutil.copytree(next(p for p in (work / "scans").iterdir() if p.is_dir()), folder)
    bomb = next(folder.glob("*-t1n.nii.gz"))
    header = nib.load(bomb).header.copy()
    header["dim"][1:4] = 10_000
    bomb.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    assert ends("verify", str(tmp_path / "scans")) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert bomb.name in said[0]


@pytest.mark.campaign
def test_the_demo_reaches_a_whole_dice_of_080(tmp_path: Path, capsys) -> None:
    assert ends("demo", str(tmp_path / "demo")) == 0
    summary = json.loads((tmp_path / "demo" / "predictions" / "summary.json").read_text())
    assert summary["conventions"]["brats2020"]["regions"]["whole"]["dice"]["mean"] >= 0.80
    assert "report" in capsys.readouterr().out

"""A folder of the reader's own scans: plain names, labels whose values nothing tells, scans that no network
was trained for.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from brats_seg import pipeline
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.build import BuildOptions
from brats_seg.bank.listing import verify_bank
from brats_seg.cli import main
from brats_seg.core.config import load_config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import sha256
from brats_seg.core.runtime import StopRequest, start_runtime
from brats_seg.evaluation.folders import ScoreOptions, evaluate_folders
from brats_seg.inference.loaded import load_segmenters
from brats_seg.inference.options import PredictOptions, Tuning, write_tuning
from brats_seg.models import packaged
from brats_seg.models.checkpoint import load_checkpoint, save_checkpoint
from brats_seg.models.restore import restore_network
from brats_seg.models.trained import held_out_by_all, open_run
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.reporting.report import write_report
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.predictions import read_rows
from brats_seg.scans.volume import read_volume, write_label_map, write_volume
from brats_seg.studies.experiment import run_experiment
from brats_seg.studies.run_job import run_folder
from brats_seg.studies.strategies import load_experiment
from brats_seg.training import train

TINY = (
    "network.channels=[8,8,16,16,16,8]",
    "patch.size=[32,32]",
    "training.epochs=1",
    "training.steps=12",
    "training.batch_size=16",
    "training.threads=1",
)
PLAIN = {"t1n": "T1", "t1c": "T1gd", "t2w": "T2", "t2f": "FLAIR (1)", "seg": "gt"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of a release, the same under plain names, a bank and two runs."""
    root = tmp_path_factory.mktemp("own")
    write_cohort(root / "scans", n_cases=4, layout="brats2023", size=48, seed=3)
    for path in (root / "scans").rglob("*.nii.gz"):
        to = (
            root
            / "plain"
            / path.parent.name
            / f"{PLAIN[path.name.removesuffix('.nii.gz').rpartition('-')[2]]}.nii.gz"
        )
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    assert (
        pipeline.preprocess(
            root / "scans", root / "bank", workers=1, options=BuildOptions(n_folds=2)
        ).exit_code
        == 0
    )
    for fold, name in enumerate(("run", "other")):
        pipeline.train(
            root / "bank", root / name, load_config("demo", overrides=TINY), fold=fold, device="cpu"
        )
    return root


def ends(*argv: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    return int(ended.value.code or 0)


def test_labels_without_a_schema_are_trained_on_only_where_it_is_named(
    work: Path, tmp_path: Path, capsys
) -> None:
    assert ends("preprocess", work / "plain", tmp_path / "bank", "--workers", "1") == 1
    said = capsys.readouterr().err
    assert (
        said.count("the meaning of each value is unknown; expected --schema NAME; the values fit brats201")
        == 4
    )
    assert (
        ends("preprocess", work / "plain", tmp_path / "bank", "--workers", "1", "--schema", "brats2023") == 0
    )
    assert ends("verify", work / "plain") == 1
    assert ends("verify", work / "plain", "--schema", "brats2023") == 0
    capsys.readouterr()
    assert ends("verify", work / "plain", "--schema", "brats2016") == 2
    assert capsys.readouterr().err.startswith(
        "brats-seg: --schema brats2016: no such label schema; the schemas are brats2012, "
    )


def test_plain_names_are_predicted_without_asking_and_scored_in_the_schema_that_is_named(
    work: Path, tmp_path: Path, capsys
) -> None:
    for name in ("scans", "plain"):
        assert (
            pipeline.predict(
                work / "run", work / name, tmp_path / name, options=PredictOptions(device="cpu")
            ).exit_code
            == 0
        )
    assert set(pd.read_csv(tmp_path / "plain" / "predictions.csv")["schema"]) == {"brats2023"}
    expected = evaluate_folders(tmp_path / "scans", work / "scans", output=tmp_path / "scans").scores
    assert ends("evaluate", tmp_path / "plain", work / "plain") == 1
    assert capsys.readouterr().out.count("the meaning of each value is unknown") == 4

    later = (
        tmp_path / "later"
    )  # the same references, with enhancing core as 4: the predictions stay in their own values
    shutil.copytree(work / "plain", later)
    for path in later.rglob("gt.nii.gz"):
        values, geometry = read_volume(path)
        write_label_map(path, np.where(values == 3, 4, values), geometry, dtype="uint8")
    for reference, schema in ((work / "plain", "brats2023"), (later, "brats2017")):
        scored = evaluate_folders(
            tmp_path / "plain", reference, options=ScoreOptions(schema=schema), output=tmp_path / "plain"
        )
        assert scored.exit_code == 0
        assert [s.dice for s in scored.scores] == pytest.approx([s.dice for s in expected], nan_ok=True)
    page = write_report(
        tmp_path / "plain", later, output=tmp_path / "report.html", options=ScoreOptions(schema="brats2017")
    )
    assert page.exit_code == 0


def test_a_head_with_its_skull_given_four_times_is_refused_unless_both_are_allowed(
    work: Path, tmp_path: Path, capsys
) -> None:
    head = np.random.default_rng(0).integers(50, 900, (40, 48, 48)).astype(np.int16)
    for name in ("t1", "t1ce", "t2", "flair"):
        (tmp_path / "scans" / "ann").mkdir(parents=True, exist_ok=True)
        write_volume(
            tmp_path / "scans" / "ann" / f"{name}.nii.gz",
            head,
            make_geometry(head.shape, dtype="int16"),
            dtype="int16",
        )
    command = ("predict", work / "run", tmp_path / "scans", tmp_path / "out", "--resample", "--device", "cpu")
    assert ends(*command) == 1
    said = capsys.readouterr().out
    assert "looks unstripped" in said
    assert "t1c is the same scan as t1n" in said
    assert "as in the training; --allow-skull --allow-same-scan accepts the case" in said
    assert "0 cases segmented, 1 refused" in said
    assert not (tmp_path / "out" / "ann.nii.gz").exists()
    assert ends(*command, "--allow-skull") == 1
    assert "looks unstripped" not in capsys.readouterr().out
    assert ends(*command, "--allow-skull", "--allow-same-scan") == 0
    assert (tmp_path / "out" / "ann.nii.gz").exists()


def load_tool():
    spec = importlib.util.spec_from_file_location(
        "make_starter", Path(__file__).parents[1] / "tools" / "make_starter.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CARD = {
    "data": "four phantoms",
    "recipe": "one epoch of 12 steps",
    "scored_on": "two held-out phantoms; convention brats2020",
    "scores": [{"region": "whole", "dice": 0.5, "n": 2, "low": 0.4, "high": 0.6}],
    "not_for": "care of patients",
    "license": "CC0",
}


@pytest.fixture
def shelf(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf with a stand-in network named `starter`."""
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(CARD))
    monkeypatch.setattr(packaged, "SHELF", tmp_path / "shelf")
    pack(work / "run", tmp_path=tmp_path)
    return tmp_path / "shelf"


def pack(*runs: Path, tmp_path: Path, name: str = "starter") -> int:
    command = [
        *map(str, runs),
        "--name",
        name,
        "--card",
        str(tmp_path / "card.yaml"),
        "--shelf",
        str(tmp_path / "shelf"),
    ]
    return int(load_tool().main(command))


def test_a_packaged_network_predicts_by_its_name(work: Path, shelf: Path, tmp_path: Path, capsys) -> None:
    assert ends("predict", "starter", work / "plain", tmp_path / "packed", "--device", "cpu") == 0
    assert (
        pipeline.predict(
            work / "run", work / "plain", tmp_path / "own", options=PredictOptions(device="cpu")
        ).exit_code
        == 0
    )
    for path in (tmp_path / "own").glob(
        "*.nii.gz"
    ):  # bf16 kernels have 8 bits: a voxel in a hundred may go to another class
        ours, theirs = (
            read_volume(folder / path.name)[0] for folder in (tmp_path / "own", tmp_path / "packed")
        )
        assert np.mean(ours != theirs) < 0.01
    assert (tmp_path / "packed" / "model_card.md").read_text() == (
        shelf / "starter" / "model_card.md"
    ).read_text()
    assert not (tmp_path / "own" / "model_card.md").exists()
    pipeline.predict(
        work / "run", work / "plain", tmp_path / "packed", options=PredictOptions(device="cpu", part=(1, 4))
    )
    assert not (
        tmp_path / "packed" / "model_card.md"
    ).exists()  # the label maps are not of that network any more


def test_a_packaged_checkpoint_is_small_and_knows_no_private_case(work: Path, shelf: Path) -> None:
    own, packed = (
        load_checkpoint(folder / "checkpoint_best.pt") for folder in (work / "run", shelf / "starter")
    )
    assert {weight.dtype for weight in packed.weights.values() if weight.ndim > 1} == {torch.bfloat16}
    assert packed.resume is None
    assert packed.train_cases == own.train_cases  # named as a public release names them
    assert load_tool()._public(("BraTS2021_00002", "HG_0001", "Ann_Smith")) == ("BraTS2021_00002", "HG_0001")
    network = restore_network(packed, shelf, runtime=start_runtime(device="cpu", precision="float32"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_weight_under_two_names_is_stored_once(work: Path) -> None:
    own, weight = load_checkpoint(work / "run" / "checkpoint_best.pt"), torch.ones(4, 3)
    packed = (
        load_tool()
        .packed(replace(own, weights={"block.weight": weight, "skip.block.weight": weight}))
        .weights
    )
    assert packed["block.weight"] is packed["skip.block.weight"]
    assert packed["block.weight"].dtype == torch.bfloat16


def test_models_lists_the_networks_and_prints_a_card(
    shelf: Path, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for command in (("models",), ("models", "starter")):
        assert ends(*command) == 0
        said = capsys.readouterr().out
        for word in (
            "starter",
            "four phantoms",
            "one epoch of 12 steps",
            "0.500",
            "0.400 to 0.600",
            "care of patients",
        ):
            assert word in said
    assert said.count("\n") > 10
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        patch.setenv("COLUMNS", "70")
        assert ends("models", "starter") == 0
    in_terminal = capsys.readouterr().out
    assert max(map(len, in_terminal.splitlines())) <= 70 < max(map(len, said.splitlines()))
    assert in_terminal.split() == said.split()
    assert ends("models", "other") == 2
    expected = (
        "brats-seg: other: the networks of the package are starter; a trained run is given by its folder\n"
    )
    assert capsys.readouterr().err == expected
    monkeypatch.setattr(packaged, "SHELF", tmp_path / "nothing")
    assert ends("models") == 0
    assert capsys.readouterr().out == "this package has no network\n"


def test_without_a_network_of_that_name_one_line_says_so(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(packaged, "SHELF", tmp_path / "nothing")
    assert ends("predict", "starter", work / "plain", tmp_path / "out") == 2
    expected = (
        "brats-seg: starter: no such folder, and this package has no network; a trained run is given by "
        "its folder\n"
    )
    assert capsys.readouterr().err == expected


def test_several_networks_of_one_name_are_averaged(work: Path, shelf: Path, tmp_path: Path) -> None:
    assert pack(work / "run", work / "other", tmp_path=tmp_path, name="pair") == 0
    assert sorted(path.name for path in (shelf / "pair").glob("*.pt")) == [
        "checkpoint_0.pt",
        "checkpoint_1.pt",
    ]
    pipeline.predict("pair", work / "plain", tmp_path / "pair", options=PredictOptions(device="cpu"))
    pipeline.predict(
        "starter",
        work / "plain",
        tmp_path / "also",
        options=PredictOptions(
            also=(
                shelf / "starter",
                work / "other",
            ),
            device="cpu",
        ),
    )
    runtime = start_runtime(device="cpu", precision="float32")
    assert len(load_segmenters([open_run(shelf / "pair")], runtime=runtime)) == 2
    with pytest.raises(InputError, match="each case was used to train at least one of its networks"):
        pipeline.held_out_cases(shelf / "pair")


def test_settings_that_travel_with_a_network_are_used_unless_left_out(
    work: Path, shelf: Path, tmp_path: Path, capsys
) -> None:
    tuned = Tuning(
        correct_priors=0.0,
        min_component_mm3=1e6,
        min_enhancing_mm3=0.0,
        epoch=1,
        n_cases=1,
        score=0.5,
        score_before=0.4,
        checkpoint=sha256(work / "run" / "checkpoint_best.pt"),
    )
    run = shutil.copytree(work / "run", tmp_path / "run")
    write_tuning(run, tuned)
    assert pack(run, tmp_path=tmp_path, name="tuned") == 0
    assert "min_component_mm3 1e+06" in (shelf / "tuned" / "model_card.md").read_text()

    def tumor_ml(*options: object) -> float:
        out = tmp_path / f"out{len(options)}"
        assert ends("predict", "tuned", work / "plain", out, "--device", "cpu", *options) == 0
        return float(pd.read_csv(out / "predictions.csv")["whole_ml"].sum())

    assert tumor_ml() == 0  # every component is below a liter
    assert tumor_ml("--untuned") > 0
    several = [str(run), str(work / "other"), "--name", "several", "--tuned", str(run)]
    assert load_tool().main([*several, "--card", str(tmp_path / "card.yaml"), "--shelf", str(shelf)]) == 0
    assert (
        pipeline.predict(
            "several", work / "plain", tmp_path / "several", options=PredictOptions(device="cpu")
        ).exit_code
        == 0
    )
    assert float(pd.read_csv(tmp_path / "several" / "predictions.csv")["whole_ml"].sum()) == 0
    capsys.readouterr()
    # a setting given by hand takes the place of all that travel
    assert tumor_ml("--min-component-mm3", "0.5") > 0
    said = capsys.readouterr()
    assert "the tuned settings of this network are not used, because you gave other settings" in said.out
    held = "--min-component-mm3 0.5 --min-component-share 0 --min-enhancing-mm3 0, and no thresholds"
    assert f"--correct-priors 0 {held}" in said.out
    n_cases = len(list((work / "plain").iterdir()))
    lines = said.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"segmenting {i}/{n_cases}" for i in range(1, n_cases + 1)
    ]


def test_more_than_six_megabytes_are_refused_and_leave_nothing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(CARD))
    tool = load_tool()
    monkeypatch.setattr(tool, "MOST_BYTES", 1000)
    command = [str(work / "run"), "--card", str(tmp_path / "card.yaml"), "--shelf", str(tmp_path / "shelf")]
    assert tool.main(command) == 1
    assert "MB of weights; 0 MB at most" in capsys.readouterr().err
    assert not (tmp_path / "shelf" / "starter").exists()


def test_what_travels_with_this_build_is_whole_and_small() -> None:
    for name in packaged.packaged_names():
        folder = packaged.find_packaged(name)
        card = packaged.read_card(folder)
        assert card.text() == (folder / "model_card.md").read_text()
        assert [network.file for network in card.networks] == [
            path.name for path in packaged.checkpoints_of(folder)
        ]
        assert [network.sha256 for network in card.networks] == [
            sha256(path) for path in packaged.checkpoints_of(folder)
        ]
        assert sum(path.stat().st_size for path in packaged.checkpoints_of(folder)) <= load_tool().MOST_BYTES


def test_the_wheel_holds_the_networks(shelf: Path, tmp_path: Path) -> None:
    root, source = Path(__file__).parents[1], tmp_path / "source"
    for name in ("brats_seg", "configs"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    shutil.copytree(shelf / "starter", source / "brats_seg" / "starter" / "standin")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {
        f"brats_seg/starter/standin/{name}"
        for name in ("checkpoint_best.pt", "model_card.md", "model_card.json")
    } <= inside


def test_a_run_that_is_not_finished_says_so_where_it_is_used(work: Path, tmp_path: Path, capsys) -> None:
    run = shutil.copytree(work / "run", tmp_path / "run")
    checkpoint = load_checkpoint(run / "checkpoint_best.pt")
    config = checkpoint.config.replace("epochs: 1\n", "epochs: 20\n", 1)
    save_checkpoint(run / "checkpoint_best.pt", replace(checkpoint, config=config))
    (run / "config.yaml").write_text(config)
    assert ends("predict", run, work / "scans", tmp_path / "out", "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert f"warning {run}: checkpoint of epoch 1 of 20: the training has reached epoch 1" in said
    for name, words in ((run, "1 of 20 epochs"), (work / "run", "1 epoch.")):
        page = write_report(tmp_path / "out", work / "scans", output=tmp_path / "report.html", run=name).page
        for path in (page, page.with_suffix(".md")):
            assert words in path.read_text()


def test_a_damaged_table_of_epochs_is_a_warning_to_predict(work: Path, tmp_path: Path) -> None:
    run = shutil.copytree(work / "run", tmp_path / "run")
    (run / "epochs.csv").write_text("epoch\nthree\n")
    problem = open_run(run).unfinished()
    assert problem is not None
    assert (problem.severity, problem.what) == (
        "warning",
        "is damaged, so it is unknown whether the training is finished",
    )


def test_processes_of_torchrun_share_the_cases(work: Path, tmp_path: Path) -> None:
    scans = shutil.copytree(work / "scans", tmp_path / "scans")
    damaged = next(sorted(scans.iterdir())[1].glob("*t2f*"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = subprocess.run(
        [*torchrun, "-m", "brats_seg", "predict", work / "run", scans, tmp_path / "out", "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    alone = pipeline.predict(work / "run", scans, tmp_path / "alone", options=PredictOptions(device="cpu"))
    assert (said.returncode, len(alone.predictions)) == (1, 3), said.stderr
    assert re.findall(r"\d+ cases? segmented", said.stdout) == ["3 cases segmented"]
    assert "1 refused" in said.stdout
    assert sorted(row["case"] for row in read_rows(tmp_path / "out")) == [
        one.case for one in alone.predictions
    ]
    for one in alone.predictions:
        assert (tmp_path / "out" / one.path.name).read_bytes() == one.path.read_bytes()


def test_what_torchrun_cannot_share_is_refused(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ends("predict", work / "run", work / "scans", tmp_path / "out", "--part", "1/2") == 2
    assert capsys.readouterr().err.startswith("brats-seg: torchrun shares the cases among its processes")


def test_training_goes_on_from_the_weights_of_another_run(
    work: Path, shelf: Path, tmp_path: Path, capsys
) -> None:
    still = load_config("demo", overrides=(*TINY, "training.steps=1", "optimizer.lr=1e-12"))
    for source in ("starter", work / "run", work / "run" / "checkpoint_best.pt"):
        run = tmp_path / Path(source).name
        pipeline.train(work / "bank", run, still, fold=0, initial=source, device="cpu")
        begun, given = (
            load_checkpoint(run / "checkpoint_best.pt"),
            load_checkpoint(work / "run" / "checkpoint_best.pt"),
        )
        for name, weight in given.weights.items():
            if weight.ndim > 1:  # kernels; the statistics of norms move with every batch
                assert torch.allclose(begun.weights[name], weight, atol=1e-2 if source == "starter" else 1e-6)
        file = (
            shelf / "starter" / "checkpoint_best.pt"
            if source == "starter"
            else work / "run" / "checkpoint_best.pt"
        )
        assert begun.parsed_config().training.initial == sha256(file)
        assert sha256(file) in (run / "config.yaml").read_text()
        assert json.loads((run / "environment.json").read_text())["initial"] == sha256(file)


def test_a_run_from_other_weights_goes_on_to_the_same_bits_and_from_no_others(
    work: Path, tmp_path: Path
) -> None:
    config = load_config("demo", overrides=(*TINY, "training.epochs=2", "training.steps=2"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pipeline.train(work / "bank", whole, config, fold=0, initial=work / "run", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "catch_stop_signals", lambda: nullcontext(StopRequest(asked=True)))
        assert (
            pipeline.train(work / "bank", cut, config, fold=0, initial=work / "run", device="cpu").ended
            == "stopped"
        )
    for initial, said in (
        (work / "other", "--resume: training.initial is"),
        (None, "--resume: training.initial is"),
    ):
        with pytest.raises(UsageError, match=said):
            pipeline.train(work / "bank", cut, config, fold=0, initial=initial, resume=True, device="cpu")
    pipeline.train(work / "bank", cut, config, fold=0, initial=work / "run", resume=True, device="cpu")
    ours, theirs = (load_checkpoint(run / "checkpoint_best.pt").weights for run in (whole, cut))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_weights_that_have_seen_held_out_cases_are_warned_of(
    work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folds = (
        load_config("demo", overrides=(*TINY, "training.steps=1")),
        PatchBank(work / "bank", patch_size=(32, 32)).folds,
    )
    for fold in (0, 1):  # the first run held out fold 0, and saw all others
        pipeline.train(
            work / "bank", tmp_path / str(fold), config, fold=fold, initial=work / "run", device="cpu"
        )
    (said,) = [record.message for record in caplog.records if "held-out" in record.message]
    n = len(folds[1])
    assert f"was trained or chosen on {n} of the {n} held-out cases ({folds[1][0]}" in said
    assert "their scores will be too high; give a run of the same fold" in said


def test_layers_that_do_not_fit_are_named_and_what_cannot_begin_is_one_line(
    work: Path, tmp_path: Path, caplog, capsys
) -> None:
    wider = load_config("demo", overrides=(*TINY, "network.channels=[8,8,16,16,16,12]", "training.steps=1"))
    pipeline.train(work / "bank", tmp_path / "wider", wider, fold=0, initial=work / "run", device="cpu")
    (record,) = [record for record in caplog.records if "--from" in record.message]
    assert record.message.startswith("--from: layers that do not fit keep random initial weights: ")
    common = ("--config", "demo", *(word for knob in TINY for word in ("--set", knob)), "--device", "cpu")
    assert ends("train", work / "bank", tmp_path / "a", *common, "--from", "nowhere") == 2
    assert "nowhere: no such folder, and " in capsys.readouterr().err
    checkpoint = load_checkpoint(work / "run" / "checkpoint_best.pt")
    swapped = ("t1c", "t1n", "t2w", "t2f")
    save_checkpoint(tmp_path / "swapped.pt", replace(checkpoint, modalities=swapped))
    assert ends("train", work / "bank", tmp_path / "b", *common, "--from", tmp_path / "swapped.pt") == 1
    assert (
        "trained on the modalities t1c, t1n, t2w, t2f; the bank has t1n, t1c, t2w, t2f"
        in capsys.readouterr().err
    )
    assert (
        ends(
            "train",
            work / "bank",
            tmp_path / "c",
            *common,
            "--from",
            work / "run",
            "--set",
            "network.name=dynunet",
        )
        == 1
    )
    assert capsys.readouterr().err.startswith("brats-seg: --from: no layer of the checkpoint's network")
    assert ends("train", work / "bank", tmp_path / "d", *common, "--set", "training.initial=abc") == 2


def test_paths_may_be_strings(work: Path, tmp_path: Path) -> None:
    run, scans, out = str(work / "run"), str(work / "scans"), str(tmp_path / "out")
    assert len(find_cases(scans).cases) == 4
    assert pipeline.verify_scans(scans, workers=1).exit_code == 0
    assert not verify_bank(str(work / "bank"))
    assert pipeline.predict(run, scans, out, options=PredictOptions(also=(run,), device="cpu")).exit_code == 0
    assert evaluate_folders(out, scans, against=out, output=str(tmp_path / "scores")).exit_code == 0
    assert evaluate_folders(out, scans, against=out, output=str(tmp_path / "scores")).exit_code == 0
    assert write_report(out, scans, output=str(tmp_path / "report.html"), run=run).exit_code == 0
    case = find_cases(scans).cases[0]
    files = {name: str(scan) for name, scan in case.modalities.items()}
    assert (
        pipeline.predict_files(
            run, str(tmp_path / "mine.nii.gz"), files, options=PredictOptions(device="cpu")
        ).exit_code
        == 0
    )
    assert pipeline.held_out_cases(run) == held_out_by_all([open_run(run)])
    assert open_run(run).unfinished() is None
    assert (
        pipeline.preprocess(scans, str(work / "bank"), workers=1, options=BuildOptions(n_folds=2)).exit_code
        == 0
    )
    config, finished = load_config("demo", overrides=TINY), shutil.copytree(work / "run", tmp_path / "run")
    assert (
        pipeline.train(str(work / "bank"), str(finished), config, fold=0, resume=True, device="cpu").ended
        == "done"
    )
    assert len(write_cohort(tmp_path / "phantoms", n_cases=1, layout="brats2021", size=48, seed=0)) == 1
    assert run_folder(out, {"data": "", "strategy": "a", "fold": 0, "seed": 0}).parent.parent == Path(
        out, "runs", "a"
    )
    for refused in (
        lambda: pipeline.tune(run, out, device="cpu"),
        lambda: pipeline.compose(run, run, out),
        lambda: run_experiment(
            out, str(tmp_path / "experiment"), load_experiment("sampling_quick"), known=out
        ),
    ):
        with pytest.raises((InputError, UsageError)):
            refused()


def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(
    work: Path, tmp_path: Path, capsys
) -> None:
    (case,) = find_cases(work / "scans").cases[:1]
    command = (
        "predict-case",
        work / "run",
        tmp_path / "mine.nii.gz",
        *(f"--{name}={scan}" for name, scan in case.modalities.items()),
    )
    (tmp_path / "mine.nii.gz").write_text("a year of work")
    assert ends(*command, "--device", "cpu") == 2
    assert (
        capsys.readouterr().err
        == f"brats-seg: {tmp_path / 'mine.nii.gz'}: exists already; give another name, or --overwrite\n"
    )
    assert (tmp_path / "mine.nii.gz").read_text() == "a year of work"
    assert ends(*command, "--device", "cpu", "--overwrite") == 0
    assert read_volume(tmp_path / "mine.nii.gz")[0].shape == read_volume(case.modalities["t1n"])[0].shape


def test_the_demo_segments_the_readers_own_scans(work: Path, shelf: Path, tmp_path: Path, capsys) -> None:
    assert ends("demo", tmp_path / "out", "--real", work / "plain") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<article class="case">') == 4
    assert page.count("<img") == 4 * 2 * 2  # FLAIR and T1c, each alone and under the prediction
    assert "reference" not in page.partition("</style>")[2]
    assert "Core: whole without edema. Active: enhancing core." in page
    assert not (tmp_path / "out" / "scores.html").exists()  # nothing says what the labels mean
    said = capsys.readouterr().out
    assert "4 references are not scored" in said
    assert f"brats-seg evaluate {tmp_path / 'out' / 'predictions'} {work / 'plain'} --schema NAME" in said
    assert ends("demo", tmp_path / "scored", "--real", work / "scans") == 0
    assert (tmp_path / "scored" / "scores.html").exists()
    assert ends("demo", tmp_path / "out", "--real", work / "plain") == 2


def test_the_demo_exits_with_1_where_a_case_was_refused_and_names_the_verb_with_the_options(
    work: Path, shelf: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(work / "plain", tmp_path / "scans")
    first = sorted((tmp_path / "scans").iterdir())[0]
    shutil.copy(first / "T1.nii.gz", first / "T1gd.nii.gz")
    assert ends("demo", tmp_path / "out", "--real", tmp_path / "scans") == 1
    said = capsys.readouterr().out
    assert "--allow-same-scan accepts the case" in said
    assert f"for the options named above: brats-seg predict starter {tmp_path / 'scans'} OUT" in said
    assert (tmp_path / "out" / "report.html").read_text().count('<article class="case">') == 3

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imread

from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.reporting.progress import draw_progress
from brats_seg.training.log import (
    RunLog,
    Stopwatch,
    precision_name,
    processor_model,
    progress_note,
    table_text,
    write_environment,
)

DICE = {"dice_whole": 0.5, "dice_core": None, "dice_active": 0.1}
EPOCHS = [
    {"epoch": e, "step": 10 * e, "lr": 1e-3, "loss": 1 / e, **DICE, "score": 0.3, "is_best": 1}
    for e in (1, 2)
]
LEDGER = [
    {"epoch": e, "class": c, "center_share": 0.5, "voxel_share": 0.5}
    for e in (1, 2)
    for c in ("healthy", "edema")
]


def seconds(epoch: int) -> dict[str, object]:
    """A row of timing.csv: 1.5 s in all, of which sampling is a part of the training."""
    spent = {f"{part}_s": 0.0 for part in ("augmentation", "mining", "checkpoint")}
    return {
        "epoch": epoch, **spent, "training_s": 1.0, "validation_s": 0.5, "sampling_s": 0.3,
        "finished": f"2026-01-01T00:00:0{epoch}Z",
    }  # fmt: skip


def test_tables_are_plain_csv_with_nothing_for_what_is_not_known() -> None:
    text = table_text([{"a": 1, "b": 1 / 3, "c": None}, {"a": 2, "b": float("nan"), "c": "x"}])
    assert text == "a,b,c\n1,0.33333333,\n2,,x\n"
    assert table_text([]) == ""


def test_a_long_table_grows_by_epoch_and_a_run_that_goes_on_cuts_off_what_it_draws_again(
    tmp_path: Path,
) -> None:
    def rows(epoch: int) -> list[dict[str, int | str]]:
        return [{"epoch": epoch, "case": "A", "n": 3}, {"epoch": epoch, "case": "B", "n": epoch}]

    path = tmp_path / "ledger_cases.csv"
    log = RunLog(tmp_path, classes=())
    for epoch in (1, 2, 10):
        log.append("ledger_cases", rows(epoch))
    whole = path.read_text()
    assert whole == "epoch,case,n\n1,A,3\n1,B,1\n2,A,3\n2,B,2\n10,A,3\n10,B,10\n"
    path.write_text(whole + "11,A,3\n1")  # killed while it wrote
    again = RunLog(tmp_path, classes=())
    for epoch in (2, 10):
        again.append("ledger_cases", rows(epoch))
    assert path.read_text() == whole


def test_a_line_that_is_of_no_epoch_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger_cases.csv"
    path.write_text("epoch,n\n1,3\n\nold,3\n")
    RunLog(tmp_path, classes=()).append("ledger_cases", [{"epoch": 2, "n": 4}])
    assert path.read_text() == "epoch,n\n1,3\n2,4\n"


@pytest.mark.usefixtures("drawn")
def test_curves_are_drawn_from_the_first_epoch_on(tmp_path: Path) -> None:
    for n in (1, 2):
        draw_progress(
            tmp_path / "progress.png", epochs=EPOCHS[:n], ledger=LEDGER[: 2 * n], classes=("healthy", "edema")
        )
        assert imread(tmp_path / "progress.png").shape == (770, 1320, 4)


@pytest.mark.usefixtures("drawn")
def test_tables_are_written_each_epoch_and_the_last_curves_always(tmp_path: Path) -> None:
    log = RunLog(tmp_path, classes=("healthy", "edema"))
    log.load_state_dict({"epochs": EPOCHS[:1], "ledger": LEDGER[:2], "timing": [seconds(1)]})
    log.write(is_last=False)
    drawn = (tmp_path / "progress.png").stat().st_mtime_ns
    log.epochs.append(EPOCHS[1])
    log.timing.append(seconds(2))
    log.write(is_last=False)  # at once again: drawing would take more than its share of the time
    assert (tmp_path / "progress.png").stat().st_mtime_ns == drawn
    assert (tmp_path / "epochs.csv").read_text().count("\n") == 3
    assert (tmp_path / "train.log").read_text() == (
        "2026-01-01T00:00:01Z epoch 1: loss 1.0000, inner Dice whole 0.500 active 0.100, best so far, 1.5 s\n"
        "2026-01-01T00:00:02Z epoch 2: loss 0.5000, inner Dice whole 0.500 active 0.100, best so far, 1.5 s\n"
    )
    log.write(is_last=True)
    assert (tmp_path / "progress.png").stat().st_mtime_ns > drawn
    again = RunLog(tmp_path, classes=("healthy", "edema"))
    again.load_state_dict(log.state_dict())
    assert again.epochs == log.epochs


def test_environment_says_what_the_run_stood_on(tmp_path: Path) -> None:
    runtime = Runtime(torch.device("cpu"), torch.bfloat16, n_threads=3)
    write_environment(
        tmp_path / "e.json", runtime=runtime, command=["brats-seg", "train"], n_parameters=7, bank="abc"
    )
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["precision"], found["n_threads"], found["device"], found["n_parameters"]) == (
        "bf16",
        3,
        "cpu",
        7,
    )
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0]
        or found["versions"]["torch"] == torch.__version__
    )
    assert precision_name(Runtime(torch.device("cpu"))) == "float32"
    assert precision_name(Runtime(torch.device("cpu"), torch.float16)) == "fp16"


def test_the_processor_is_told_by_its_model_where_the_system_names_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel\t\t: 143\nmodel name\t: AMD EPYC 9654: 96 cores\n\nprocessor\t: 1\nmodel "
        "name\t: second\n"
    )
    assert processor_model(cpuinfo) == "AMD EPYC 9654: 96 cores"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # as on ARM
    assert (
        processor_model(cpuinfo)
        == processor_model(tmp_path / "absent")
        == (platform.processor() or platform.machine())
    )


def test_the_watch_tells_an_epochs_parts_and_begins_anew() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch("training_s"):
            time.sleep(0.01)
    first, second = (watch.row(epoch, n_patches=10) for epoch in (1, 2))
    assert list(first) == ["epoch", *Stopwatch.PARTS, "patches_per_s", "finished"]
    assert first["training_s"] >= 0.02
    assert 0 < first["patches_per_s"] <= 500
    assert (first["mining_s"], second["training_s"]) == (0, 0)


def test_the_time_of_an_open_epoch_is_kept_where_a_run_goes_on() -> None:
    before, after = Stopwatch(), Stopwatch()
    with before("mining_s"):
        time.sleep(0.02)
    after.load_state_dict(before.state_dict())
    assert after.row(1, n_patches=0)["mining_s"] == before.row(1, n_patches=0)["mining_s"] > 0
    after.load_state_dict({})  # a checkpoint of before holds none
    assert after.row(2, n_patches=0)["mining_s"] == 0


def test_the_bar_says_epoch_mix_and_loss() -> None:
    assert progress_note(2, n_drawn=np.array([30, 10, 0]), loss=0.5) == "epoch 2  mix 75/25/0 %  loss 0.500"
    assert progress_note(1, n_drawn=np.zeros(2, np.int64), loss=None) == "epoch 1  mix 0/0 %"


def test_the_board_gets_every_number_of_an_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, classes=("healthy", "edema"), tensorboard=True)
    for row in EPOCHS:
        log.epochs.append(row)
        log.ledger += [entry for entry in LEDGER if entry["epoch"] == row["epoch"]]
        log.write(is_last=False)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert set(events.Tags()["scalars"]) == {
        "step",
        "lr",
        "loss",
        "dice_whole",
        "dice_active",
        "score",
        "is_best",
    }


def test_without_the_package_the_knob_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"brats-seg\[tensorboard\]"):
        RunLog(tmp_path, classes=("healthy",), tensorboard=True)

import shutil
from pathlib import Path

import pytest
from tiny_study import Study

from brats_seg.core.errors import InputError
from brats_seg.reporting.history import training_section


def test_an_enhancing_voxel_was_drawn_two_and_a_half_times_an_epoch(study: Study) -> None:
    healthy, enhancing = training_section(study.run)["ledger_rows"]
    assert (healthy["repeats"], enhancing["repeats"]) == (1.0, 2.5)
    assert (enhancing["n_draws"], enhancing["n_distinct"], enhancing["n_hard"]) == (200, 40, 14)
    assert (healthy["requested_percent"], healthy["voxel_percent"]) == pytest.approx((50, 80))


def test_curves_have_the_epochs_that_have_a_number(study: Study) -> None:
    section = training_section(study.run)
    loss, dice = section["curves"]
    assert "loss ends at 0.500" in loss["plot"].alt
    assert "whole ends at 0.700" in dice["plot"].alt
    assert "epoch 2" in dice["words"]
    assert (section["epochs"], section["outside_percent"]) == ("2 of 50 epochs", 25.0)


@pytest.mark.parametrize(
    ("table", "damage", "said"),
    [
        ("epochs.csv", "epo", r"epochs\.csv: damaged, it has no column 'epoch'"),
        (
            "epochs.csv",
            "epoch,loss,dice_whole,dice_core,dice_active\n1,abc,,,\n",
            r"epochs\.csv: damaged, 'loss' is 'abc', not a number, in line 2",
        ),
        (
            "epochs.csv",
            "epoch,loss,dice_whole,dice_core,dice_active\n1,0.5,,,\n2,0.\n",
            r"epochs\.csv: not a table: line 3 has 2 cells for 5 columns",
        ),
        ("epochs.csv", 'epoch\n"1', r"epochs\.csv: not "),
        ("epochs.csv", b"\xff\xfe\x00", r"epochs\.csv: not "),
        (
            "ledger.csv",
            "epoch,class\n1,healthy\n",
            r"ledger\.csv: damaged, it has no column 'requested_share'",
        ),
    ],
)
def test_a_damaged_table_is_named_in_one_line(
    study: Study, tmp_path: Path, table: str, damage: str | bytes, said: str
) -> None:
    shutil.copytree(study.run, tmp_path / "run")
    (tmp_path / "run" / table).write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(InputError, match=said) as error:
        training_section(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_what_a_run_does_not_have_is_left_out(study: Study, tmp_path: Path) -> None:
    shutil.copy(study.run / "ledger.csv", tmp_path)
    section = training_section(tmp_path)
    assert section["curves"] == []
    assert section["config"] is None
    assert section["mix"] is not None


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"epochs\.csv"):
        training_section(tmp_path)

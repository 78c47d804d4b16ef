"""The script of the recipe on a lent GPU, with a stand-in for the program."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "device_recipe.sh"


@pytest.mark.parametrize("code", [0, 1])
def test_a_score_that_fails_is_not_passed_over(code: int, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\n[ "$1" = evaluate ] && exit {code}\nmkdir -p "$4" && : > "$4/A.nii.gz"\n')
    program.chmod(0o755)
    (tmp_path / "runs" / "fold0").mkdir(parents=True)
    arguments = ["score", *(str(tmp_path / name) for name in ("bank", "runs", "scans", "out"))]
    environment = os.environ | {"BRATS_SEG": str(program)}
    ended = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, check=False)
    assert ended.returncode == code
    assert (tmp_path / "out" / "all_folds" / "A.nii.gz").exists()

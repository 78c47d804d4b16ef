"""A verb that is killed and given again leaves what one undisturbed run leaves; see docs/reliability.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

A_FEW = {"preprocess": 3, "predict": 3, "evaluate": 3, "train": 2, "experiment": 1, "study": 2}
A_THOUSAND = {"preprocess": 240, "predict": 240, "evaluate": 240, "train": 100, "experiment": 90, "study": 90}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("kills", [A_FEW, pytest.param(A_THOUSAND, marks=pytest.mark.campaign)])
def test_a_killed_verb_that_is_given_again_leaves_what_one_run_leaves(
    kills: dict[str, int], tmp_path: Path
) -> None:
    asked = ",".join(f"{verb}={n}" for verb, n in kills.items())
    command = [sys.executable, Path(__file__).with_name("kills.py"), tmp_path, "--kills", asked]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert {verb: found["wrong"] for verb, found in counts.items()} == dict.fromkeys(kills, 0), done.stdout
    assert all(counts[verb]["kills"] >= n for verb, n in kills.items())

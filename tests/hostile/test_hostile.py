"""Spoiled files are read, or refused in one line; see docs/reliability.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def fates(out: Path, n: int) -> dict[str, dict[str, int]]:
    """What became of `n` spoiled files of each kind, read by processes of a fresh one: forked from pytest's
    they would have its threads.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, HERE / "campaign.py", out, "--mutants", str(n)], check=True, env=environment
    )
    counts: dict[str, dict[str, int]] = json.loads((out / "counts.json").read_text())
    return counts


@pytest.mark.parametrize("n", [100, pytest.param(4000, marks=pytest.mark.campaign)])
def test_a_spoiled_file_is_read_or_refused_in_one_line(tmp_path: Path, n: int) -> None:
    counts = fates(tmp_path, n)
    assert len(counts) == 25
    assert all(sum(of_kind.values()) == n for of_kind in counts.values())
    bad = {
        kind: {fate: k for fate, k in of_kind.items() if fate not in ("read", "refused", "peer")}
        for kind, of_kind in counts.items()
    }
    assert {kind: of_kind for kind, of_kind in bad.items() if of_kind} == {}, "\n".join(
        path.read_text() for path in sorted((tmp_path / "found").glob("*.txt"))
    )
    assert all(of_kind.get("read") for of_kind in counts.values())


def test_what_a_process_dies_or_stands_still_of_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    environment = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, tmp_path / "probe.py", tmp_path],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    wanted = {
        "read": 2,
        "refused": 1,
        "traceback": 1,
        "long line": 1,
        "memory": 1,
        "hang": 1,
        "crash": 1,
        "wrong": 1,
        "peer": 1,
    }
    assert json.loads(done.stdout) == wanted


PROBE = """
import ctypes, json, sys, time
from pathlib import Path
import campaign
from targets import Target
from brats_seg.core.errors import InputError

campaign.PATIENCE_S, campaign.STARVED = 1.0, 3
root = Path(sys.argv[1])
(root / "found").mkdir()
path = root / "x"
fates = ["read", "refused", "traceback", "long line", "memory", "hang", "crash", "wrong", "peer", "read"]

def read():
    fate = fates[int(path.read_bytes())]
    if fate == "refused":
        raise InputError("x: no")
    if fate == "traceback":
        raise KeyError("x")
    if fate == "long line":
        raise InputError("x: no", "more")
    if fate == "memory":
        bytearray(3 << 30)
    if fate == "hang":
        time.sleep(60)
    if fate == "crash":
        ctypes.string_at(0)
    return fate

def compare(fate):
    if fate == "peer":
        ctypes.string_at(0)
    return fate != "wrong"

target = Target(path, lambda content, dice: b"", read, compare)
campaign.mutant = lambda name, target, sound, number: str(number).encode()
print(json.dumps(campaign._some("x", target, b"", range(10), found=root / "found")))
"""

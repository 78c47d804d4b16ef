"""A study: what is planned, that it goes on where it was killed, that nothing is lost or doubled."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from striped_images import tiny_settings, write_images

from brats_seg.classification.settings import StudySettings
from brats_seg.classification.study import cells, make_plan, run_study, study_rows, study_table
from brats_seg.classification.table import make_table
from brats_seg.config import config_names, load_settings
from brats_seg.core.grid import Row
from brats_seg.errors import InputError, UsageError

CLOCKS = ("seconds",)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes.npz")


def without_clocks(rows: list[Row]) -> list[str]:
    return sorted(repr({name: value for name, value in row.items() if name not in CLOCKS}) for row in rows)


def networks_of(name: str) -> tuple[int, int]:
    plan = make_plan(load_settings(StudySettings, name, shelf="studies"), folder=Path("nowhere"), workers=1)
    return plan.n_sets, plan.n_networks


def test_the_published_numbers_of_networks():
    assert networks_of("mnist") == (4050 + 450, 22_500)
    assert networks_of("imagenet") == (5, 15)
    assert networks_of("mnist_quick") == (18, 90)
    quick = make_plan(load_settings(StudySettings, "cifar10", shelf="studies"), folder=Path("nowhere"), workers=1)
    assert quick.n_networks == 480 + 160 + 8  # and the balanced set


@pytest.mark.parametrize("name", config_names("studies"))
def test_every_study_that_travels_along_can_be_planned(name: str):
    settings = load_settings(StudySettings, name, shelf="studies")
    assert len({cell.digest for cell in cells(settings)}) == len({cell.key for cell in cells(settings)}) == len(cells(settings))


def test_a_finished_study_trains_nothing_again_and_a_grown_one_only_what_is_new(images: Path, tmp_path: Path):
    first = run_study(tiny_settings(), tmp_path, folder=images, workers=1, device="cpu")
    assert (first.n_new, first.n_kept, first.failed) == (6, 0, ())
    again = run_study(tiny_settings(), tmp_path, folder=images, workers=1, device="cpu")
    assert (again.n_new, again.n_kept) == (0, 6)
    grown = run_study(tiny_settings(repeats=2), tmp_path, folder=images, workers=1, device="cpu")
    assert (grown.n_new, grown.n_kept) == (6, 6)
    with pytest.raises(InputError, match="another study"):
        run_study(tiny_settings(base=30), tmp_path, folder=images, workers=1, device="cpu")
    assert study_table(tmp_path).means == make_table(study_rows(tmp_path)).means  # its settings were not overwritten


def test_parts_make_the_whole(images: Path, tmp_path: Path):
    whole = run_study(tiny_settings(), tmp_path / "whole", folder=images, workers=1, device="cpu")
    for number in (1, 2):
        part = run_study(tiny_settings(), tmp_path / "parts", folder=images, workers=1, part=(number, 2), device="cpu")
        assert part.n_new == 3
    assert without_clocks(study_rows(tmp_path / "parts")) == without_clocks(list(whole.rows))
    merged = run_study(tiny_settings(), tmp_path / "parts", folder=images, workers=1, device="cpu")
    assert merged.n_new == 0  # taken over from the parts


def test_a_study_needs_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BRATS_SEG_DATA", raising=False)
    with pytest.raises(UsageError, match=r"images\.folder"):
        run_study(tiny_settings(), tmp_path, folder=None, workers=1)
    with pytest.raises(InputError, match=r"nothing\.npz"):
        run_study(tiny_settings(), tmp_path, folder=tmp_path / "nothing.npz", workers=1)
    with pytest.raises(InputError, match="no finished network"):
        study_rows(tmp_path)


def test_killed_twice_a_study_has_every_row_once(images: Path, tmp_path: Path):
    check_kills(images, tmp_path, n_kills=2, iterations=60, repeats=1)


@pytest.mark.campaign
def test_killed_ten_times_a_study_has_every_row_once(images: Path, tmp_path: Path):
    check_kills(images, tmp_path, n_kills=10, iterations=300, repeats=2)


def check_kills(images: Path, tmp_path: Path, *, n_kills: int, iterations: int, repeats: int) -> None:
    """kill -9 a worker, then the whole study, at random moments; then let it end."""
    settings = tiny_settings(training={"iterations": iterations, "batch_size": 16}, repeats=repeats)
    whole = run_study(settings, tmp_path / "whole", folder=images, workers=1, device="cpu")
    script = Path(__file__).with_name("striped_images.py")
    command = [sys.executable, *map(str, (script, images, tmp_path / "killed", iterations, repeats))]
    dice = random.Random(n_kills)
    for number in range(n_kills):
        study = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        workers = wait_for_workers(study)
        time.sleep(dice.uniform(0, 3))
        if workers and number % 2 == 0:
            os.kill(dice.choice(workers), signal.SIGKILL)
            time.sleep(dice.uniform(0, 1))
        study.kill()
        study.wait()
        time.sleep(0.2)  # until its lock is let go
    subprocess.run(command, check=True)
    killed = study_rows(tmp_path / "killed")
    assert without_clocks(killed) == without_clocks(list(whole.rows))
    assert study_table(tmp_path / "killed") == make_table(list(whole.rows))


def wait_for_workers(study: "subprocess.Popen[bytes]") -> list[int]:
    """Processes that the study has spawned, once there are some."""
    tasks = Path(f"/proc/{study.pid}/task/{study.pid}/children")
    for _ in range(200):
        children = [int(pid) for pid in tasks.read_text().split()] if tasks.exists() else []
        named = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if named or study.poll() is not None:
            return named
        time.sleep(0.05)
    return []

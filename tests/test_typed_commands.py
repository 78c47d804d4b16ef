"""The commands of the README and of the pages of start and how to are typed, on phantoms, small and short.

A command that is not typed stands below a comment `<!-- not typed: WHY -->` in its page.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brats_seg.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "start").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- not typed: (?P<why>[^>]+) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S
)
STEPS = "training.epochs: 1, training.steps: 2, training.batch_size: 4"
TINY = f"{{{STEPS}, patch.size: [16, 16], validation.every: 1}}"
STUDY = (
    "--device cpu --set network.name=two_class --set training.iterations=2 --set training.batch_size=2 "
    "--set repeats=1 --set validation.every=2 --set validation.per_class=4 "
    "--set 'distributions=[{kind: step, rho: [5], mu: [0.5], minority: random}]'"
)
SMALLER = {
    "phantom": "--size 48 --cases 4",
    "train": "--device cpu --set training.epochs=1 --set training.steps=2 --set training.batch_size=4 "
    "--set patch.size=[16,16] --set validation.every=1",
    "experiment": f"--workers 1 --device cpu --set seeds=[0] --set folds=[0] --set 'every={TINY}'",
    "study run": f"--workers 1 {STUDY}",
    "study plan": STUDY,
}
"""Options that are typed behind those of a page, so that it takes seconds."""
NEEDS = {
    "README.md": "scans",
    "docs/howto/cluster.md": "scans",
    "docs/howto/compare-strategies.md": "scans bank predictions others question.yaml",
    "docs/howto/dice-zero.md": "scans predictions",
    "docs/howto/fifty-cases.md": "scans newscans",
    "docs/howto/missing-modality.md": "scans bank partial t1ce.nii.gz t2.nii.gz flair.nii.gz",
    "docs/howto/open-result.md": "scans predictions",
    "docs/howto/own-images.md": "images",
    "docs/howto/own-labels.md": "scans predictions manifest.csv",
    "docs/howto/small-lesions.md": "scans bank",
}
"""What a page takes for granted; the others begin in an empty folder."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Each block of commands with the reason why it is not typed, "" where it is."""
    for block in BLOCK.finditer(page.read_text()):
        if block["language"] in ("", "bash"):
            yield block["text"], block["why"] or ""


def commands(page: Path) -> list[list[str]]:
    """Words behind `brats-seg` of each command that is typed, in their order."""
    text = "\n".join(text for text, why in blocks(page) if not why)
    lines = re.sub(r" \\\n +", " ", text).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("brats-seg ")]


def typed(words: list[str]) -> int:
    verb = " ".join(words[: 1 + (words[0] == "study")])
    words = [word.replace("$SLURM_ARRAY_TASK_ID", "1") for word in words]
    small = {"SCANS": "scans", "OUT": "predictions", "PAGE": "page"}
    with pytest.raises(SystemExit) as ended:
        main([small.get(word, word) for word in words] + shlex.split(SMALLER.get(verb, "")))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, by name."""
    root = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert typed(["phantom", "scans"]) == 0
        assert typed(["preprocess", "scans", "bank"]) == 0
        assert typed(["train", "bank", "run", "--config", "demo"]) == 0
        assert typed(["predict", "run", "scans", "predictions"]) == 0
    shutil.copytree(root / "predictions", root / "others")
    shutil.copytree(root / "scans", root / "newscans")
    shutil.copytree(root / "scans", root / "partial")
    for scan in (root / "partial").rglob("*_t1.nii.gz"):
        scan.unlink()
    case = root / "scans" / "BraTS2021_00001"
    plain = {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}
    (root / "a").mkdir()
    for name in plain:
        shutil.copy(case / f"{case.name}_{name}.nii.gz", root / "a" / f"{name}.nii.gz")
        shutil.copy(case / f"{case.name}_{name}.nii.gz", root / f"{name}.nii.gz")
    manifest = (ROOT / "docs" / "howto" / "own-labels.md").read_text()
    (row,) = re.findall(r"^case,patient,.*?\n.*?\n", manifest, re.M)
    (root / "manifest.csv").write_text(row.replace("brats2023", "brats2017"))
    question = (ROOT / "docs" / "howto" / "compare-strategies.md").read_text()
    (root / "question.yaml").write_text(re.findall(r"```yaml\n(.*?)```", question, re.S)[0])
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (root / "images" / kind).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 255, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / kind / f"{number}.png")
    return root


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_of_the_page_ends_well(
    page: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*NEEDS.get(named(page), "").split(), "a"]:
        (tmp_path / name).symlink_to(shop / name)
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        assert typed(words) == 0, " ".join(words)


def test_what_is_not_typed_is_said_with_its_reason() -> None:
    reasons = [why for page in PAGES for text, why in blocks(page) if why]
    assert all(re.match(r"(needs|takes|writes) ", why) for why in reasons), reasons
    for page in PAGES:  # a reason stands directly above its block
        assert page.read_text().count("<!-- not typed:") == sum(bool(why) for _, why in blocks(page))

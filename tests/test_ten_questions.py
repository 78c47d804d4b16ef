"""Ten questions of a newcomer: each is answered by one sentence, at most two clicks away from the README."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ANSWERS = {
    "What is it?": (
        "README.md",
        "Brain-tumor segmentation on MRI, and a measured answer to one question: which voxels should a "
        "network learn from when more than nine in ten are healthy?",
    ),
    "Why should I use it?": (
        "README.md",
        "A network comes with the package. It writes label maps and the volumes of the tumor in ml. You "
        "need no labels and no training.",
    ),
    "How fast is it?": ("README.md", "Time for each case, on 2 cores: 1 s, 5 s and 1 s"),
    "What must my scans be?": (
        "README.md",
        "Four modalities (T1, T1 with contrast agent, T2, FLAIR) on one grid, without skull, with voxels of "
        "1 mm, as BraTS releases them.",
    ),
    "I have 50 cases and four hours: what do I type?": (
        "docs/howto/fifty-cases.md",
        "brats-seg verify scans brats-seg preprocess scans bank brats-seg train bank runs/0",
    ),
    "How do I hold a fold out?": (
        "docs/start/first-training.md",
        "`--fold 0` holds out the first fold: `train` never opens it.",
    ),
    "What do the numbers of a label map mean?": (
        "docs/start/first-segmentation.md",
        "1 necrotic or non-enhancing core, 2 edema, 3 enhancing core for plain names, as in BraTS 2023.",
    ),
    "How do I cite it?": ("README.md", "To cite this software: [CITATION.cff](CITATION.cff)."),
    "Does it run on my Mac?": ("README.md", "Nobody has tried macOS or Windows yet."),
    "How good is it?": (
        "README.md",
        "Mean Dice of whole / core / active tumor 0.82 / 0.73 / 0.62 on 15 patients; each was scored by "
        "networks that had not seen the patient.",
    ),
}
"""Question -> the page, and the words that answer it there."""


def text_of(page: Path) -> str:
    return " ".join(page.read_text().replace("```", " ").split())


def pages_within(clicks: int) -> set[Path]:
    """Pages that links of the README lead to."""
    pages = {ROOT / "README.md"}
    for _ in range(clicks):
        for page in list(pages):
            targets = re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text())
            pages |= {path for target in targets if (path := (page.parent / target).resolve()).exists()}
    return pages


@pytest.mark.parametrize("question", ANSWERS)
def test_the_page_has_the_sentence_that_answers(question: str) -> None:
    page, answer = ANSWERS[question]
    assert answer in text_of(ROOT / page)


def test_no_answer_is_more_than_one_click_away_from_the_readme() -> None:
    assert {(ROOT / page).resolve() for page, _ in ANSWERS.values()} <= {p.resolve() for p in pages_within(1)}

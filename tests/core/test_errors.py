"""Error lines."""

from brats_seg.core.errors import LONGEST_LINE, InputError, printable


def test_a_line_that_is_too_long_loses_folders_before_words() -> None:
    folder = "/data" * 80
    wrong = "has the label schema 'x'; the schemas are brats2013, brats2017, brats2023, brats2024gli, msd"
    line = str(InputError(f"{folder}/predictions.csv: {wrong}; give another folder"))
    assert line == f".../data/predictions.csv: {wrong}; give another folder"


def test_a_line_that_fits_keeps_its_path() -> None:
    assert str(InputError("/a/b/c/d/e.csv: wrong")) == "/a/b/c/d/e.csv: wrong"


def test_words_that_are_too_long_lose_their_middle() -> None:
    line = printable("first " + "x" * 1000 + " last")
    assert len(line) == LONGEST_LINE
    assert line.startswith("first x")
    assert line.endswith("x last")


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    assert printable("a\nb\x1b") == "a\\nb\\x1b"

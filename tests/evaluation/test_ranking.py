import pytest

from brats_seg.core.errors import InputError, UsageError
from brats_seg.evaluation.ranking import rank_tables

HEAD = "case,region,convention,dice,hd95_mm,patient\n"


def write(path, rows):
    """Rows of (case, whole Dice, HD95), under brats2020."""
    path.write_text(HEAD + "".join(f"{c},whole,brats2020,{d},{h},{c}\n" for c, d, h in rows))
    return path


def test_ranks_worked_by_hand(tmp_path):
    # Case a: Dice ranks 1, 2, 3 and HD95 ranks 1, 2.5, 2.5. Case b: Dice 2, 1, 3 and HD95 1, 2, 3.
    # The means are (1 + 1 + 2 + 1) / 4, (2 + 2.5 + 1 + 2) / 4 and (3 + 2.5 + 3 + 3) / 4.
    tables = {
        "x": write(tmp_path / "x.csv", [("a", 0.9, 2), ("b", 0.8, 3)]),
        "y": write(tmp_path / "y.csv", [("a", 0.8, 5), ("b", 0.9, 4)]),
        "z": write(tmp_path / "z.csv", [("a", 0.7, 5), ("b", 0.1, 9)]),
    }
    ranking = rank_tables(tables)
    assert [(p.name, p.place, p.mean_rank) for p in ranking.places] == [
        ("x", 1, 1.25), ("y", 2, 1.875), ("z", 3, 2.875)
    ]  # fmt: skip
    assert (ranking.convention, ranking.n_cases, ranking.n_without_number) == ("brats2020", 2, 0)


def test_p_is_the_share_of_exchanges_and_the_bootstrap_is_sure_where_all_cases_agree(tmp_path):
    cases = [f"c{n}" for n in range(8)]
    tables = {
        "good": write(tmp_path / "good.csv", [(c, 0.9, 2) for c in cases]),
        "bad": write(tmp_path / "bad.csv", [(c, 0.5, 9) for c in cases]),
    }
    good, bad = rank_tables(tables).places
    assert good.p_to_next == pytest.approx(2 / 2**8)  # two of the 256 exchanges differ as much
    assert (good.place_low, good.place_high, bad.place_low, bad.place_high) == (1, 1, 2, 2)
    assert bad.p_to_next is None


def test_equal_predictions_share_a_place_and_p_is_one(tmp_path):
    rows = [(f"c{n}", 0.5 + n / 100, n) for n in range(5)]
    tables = {name: write(tmp_path / f"{name}.csv", rows) for name in ("x", "y")}
    first, second = rank_tables(tables).places
    assert (first.place, second.place, first.p_to_next) == (1, 1, 1.0)


def test_what_some_table_lacks_is_left_out_and_counted(tmp_path):
    tables = {
        "x": write(tmp_path / "x.csv", [("a", 0.9, 2), ("b", 0.8, ""), ("only_x", 0.1, 1)]),
        "y": write(tmp_path / "y.csv", [("a", 0.8, 5), ("b", 0.7, 4)]),
    }
    ranking = rank_tables(tables)
    assert (ranking.n_cases, ranking.n_left_out, ranking.n_without_number) == (2, 1, 1)


def test_bad_tables_are_named(tmp_path):
    good = write(tmp_path / "good.csv", [("a", 0.9, 2)])
    other = tmp_path / "other.csv"
    other.write_text("name,value\na,1\n")
    word = write(tmp_path / "word.csv", [("a", "high", 2)])
    with pytest.raises(InputError, match=r"other\.csv: no table of scores"):
        rank_tables({"good": good, "other": other})
    with pytest.raises(InputError, match=r"word\.csv: a, dice is 'high'"):
        rank_tables({"good": good, "word": word})
    with pytest.raises(InputError, match="no case in common"):
        rank_tables({"good": good, "far": write(tmp_path / "far.csv", [("b", 0.9, 2)])})
    with pytest.raises(UsageError, match="--convention nnunet: not in all tables"):
        rank_tables({"good": good, "word": word}, convention="nnunet")
    with pytest.raises(UsageError, match="two or more"):
        rank_tables({"good": good})

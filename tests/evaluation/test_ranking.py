import pytest

from brats_seg.core.errors import InputError, UsageError
from brats_seg.evaluation.ranking import rank_tables

HEAD = "case,region,convention,n_reference_vox,n_prediction_vox,dice,hd95_mm,patient\n"


def write(path, rows):
    """Rows of (case, whole Dice, HD95), under brats2020."""
    path.write_text(HEAD + "".join(f"{c},whole,brats2020,9,9,{d},{h},{c}\n" for c, d, h in rows))
    return path


def write_nnunet(path, rows):
    """Rows of (case, voxels of the reference, of the prediction, whole Dice, HD95), under nnunet."""
    path.write_text(HEAD + "".join(f"{c},whole,nnunet,{r},{p},{d},{h},{c}\n" for c, r, p, d, h in rows))
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
    assert (ranking.convention, ranking.n_cases, ranking.n_incomplete) == ("brats2020", 2, 0)


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


def test_a_false_region_is_punished_where_a_correct_empty_answer_has_no_number(tmp_path):
    # c1 has no tumor. A: rank 2 twice. c2: Dice rank 1 for A, HD95 shared. (2 + 1.25) / 2 and (1 + 1.75) / 2
    tables = {
        "A": write_nnunet(tmp_path / "A.csv", [("c1", 0, 50, 0.0, ""), ("c2", 9, 9, 0.81, 3)]),
        "B": write_nnunet(tmp_path / "B.csv", [("c1", 0, 0, "", ""), ("c2", 9, 9, 0.80, 3)]),
    }
    first, second = rank_tables(tables).places
    assert (first.name, first.mean_rank, second.name, second.mean_rank) == ("B", 1.375, "A", 1.625)


def test_the_distance_of_a_missed_region_ranks_behind_any_number(tmp_path):
    tables = {
        "missed": write_nnunet(tmp_path / "missed.csv", [("a", 9, 0, 0.0, "")]),
        "poor": write_nnunet(tmp_path / "poor.csv", [("a", 9, 1, 0.0, 300)]),
    }
    assert [(p.name, p.mean_rank) for p in rank_tables(tables).places] == [("poor", 1.25), ("missed", 1.75)]


def test_a_case_that_a_table_lacks_ranks_last_for_that_table_and_is_counted(tmp_path):
    tables = {
        "whole": write(tmp_path / "whole.csv", [("a", 0.8, 5), ("b", 0.1, 90), ("c", 0.1, 90)]),
        "gaps": write(tmp_path / "gaps.csv", [("a", 0.9, 2)]),
    }
    ranking = rank_tables(tables)
    assert [(p.name, p.mean_rank) for p in ranking.places] == [
        ("whole", pytest.approx(4 / 3)), ("gaps", pytest.approx(5 / 3))
    ]  # fmt: skip
    assert (ranking.n_cases, ranking.n_incomplete) == (3, 2)


def test_bad_tables_are_named(tmp_path):
    good = write(tmp_path / "good.csv", [("a", 0.9, 2)])
    other = tmp_path / "other.csv"
    other.write_text("name,value\na,1\n")
    word = write(tmp_path / "word.csv", [("a", "high", 2)])
    with pytest.raises(InputError, match=r"other\.csv: is not a table of scores"):
        rank_tables({"good": good, "other": other})
    with pytest.raises(InputError, match=r"word\.csv: a, dice is 'high'"):
        rank_tables({"good": good, "word": word})
    with pytest.raises(InputError, match="no case in common"):
        rank_tables({"good": good, "far": write(tmp_path / "far.csv", [("b", 0.9, 2)])})
    with pytest.raises(UsageError, match="--convention nnunet: not in all tables"):
        rank_tables({"good": good, "word": word}, convention="nnunet")
    with pytest.raises(UsageError, match="two or more"):
        rank_tables({"good": good})

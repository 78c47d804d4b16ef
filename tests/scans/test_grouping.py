"""How the classes of a bank are grouped."""

from typing import Any, get_args

import pytest

from brats_seg.core.errors import UsageError
from brats_seg.core.sections import Task
from brats_seg.scans.grouping import GroupKind, group_classes

FOUR = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")


def test_each_grouping_by_hand() -> None:
    assert group_classes("all", FOUR).groups == ((0,), (1,), (2,), (3,))
    two = group_classes("healthy_or_tumor", FOUR)
    assert (two.classes, two.groups) == (("healthy", "tumor"), ((0,), (1, 2, 3)))
    assert two.table[[0, 1, 2, 3, 4, 255]].tolist() == [0, 1, 1, 1, 255, 255]
    tumor = group_classes("tumor", FOUR)
    assert tumor.classes == FOUR[1:]
    assert tumor.table[[0, 1, 2, 3, 4, 255]].tolist() == [255, 0, 1, 2, 255, 255]


def test_a_cavity_is_no_healthy_tissue() -> None:
    """Else no second stage could find it."""
    classes = (*FOUR, "resection_cavity")
    assert group_classes("healthy_or_tumor", classes).table[4] == 1
    assert group_classes("tumor", classes).classes[-1] == "resection_cavity"


def test_the_config_names_the_same_groupings() -> None:
    assert get_args(GroupKind) == get_args(Task.model_fields["classes"].annotation)


def test_one_tumor_class_is_nothing_to_tell_apart() -> None:
    with pytest.raises(UsageError, match=r"task\.classes 'tumor': the bank has healthy, edema"):
        group_classes("tumor", ("healthy", "edema"))


def test_an_unknown_grouping_is_refused_with_the_choices() -> None:
    unchecked: Any = getattr(group_classes, "__wrapped__", group_classes)
    with pytest.raises(UsageError, match=r"'core': must be one of all, healthy_or_tumor, tumor"):
        unchecked("core", FOUR)

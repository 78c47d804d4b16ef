"""`import brats_seg as bs`: a dozen names, imported when they are used."""

import subprocess
import sys

import pytest

import brats_seg as bs


@pytest.mark.parametrize("name", bs.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(bs, name)
    assert name in dir(bs)
    assert name == "CONVENTIONS" or value.__doc__


def test_a_name_that_is_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'segment'; it has .*load_run"):
        bs.segment  # noqa: B018


def test_the_import_brings_nothing_heavy() -> None:
    code = "import sys, brats_seg; print(sorted({'torch', 'numpy', 'monai', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"

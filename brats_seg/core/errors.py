"""Errors for users: one line with the case, the file, the problem and its solution."""

import errno
import re

LONGEST_LINE = 400
"""Largest number of characters of an error line. In a longer line paths are shortened first, and then the
middle is removed.
"""
_LONG_PATH = re.compile(r"(?:/[^/:;,]+){4,}")
"""A path of four or more folders. Words after the path, up to the next punctuation, count as part of its last
name.
"""


def printable(text: str, *, limit: int = LONGEST_LINE) -> str:
    """One line of at most `limit` characters. Characters that a terminal cannot show are escaped. If the line
    is too long, each path is shortened to its last two names. If it is still too long, its middle is removed.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > limit:
        text = _LONG_PATH.sub(lambda path: ".../" + "/".join(path.group().split("/")[-2:]), text)
    if len(text) <= limit:
        return text
    n_first = limit * 2 // 3
    return f"{text[:n_first]} ... {text[n_first + 5 - limit :]}"


class _ToldError(Exception):
    """An error of one line, or of several lines that are given separately. The lines can be printed with any
    names and values in them.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self.args)


class InputError(_ToldError):
    """The input has a problem. The command line prints it in one line and exits with 1."""


class UsageError(_ToldError):
    """The command or a setting is wrong. The command line prints it in one line and exits with 2."""


def refuse(*rules: tuple[object, str], error: type[Exception] = UsageError) -> None:
    """Raise an error with the reason of the first broken rule.

    Args:
        rules: for each rule whether it is broken (any value that counts as true), and the reason for the
            user.
        error: class of the error.
    """
    for is_broken, reason in rules:
        if is_broken:
            raise error(reason)


def count_words(n: int, noun: str) -> str:
    """A number and its noun, in the plural if the number is not 1."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that the memory of a GPU or of the machine was too small."""
    said = str(error)
    return isinstance(error, MemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because the disk or the quota is full. NumPy reports an incomplete write without
    an error number.
    """
    return error.errno in (None, errno.ENOSPC, errno.EDQUOT)

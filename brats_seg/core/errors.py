"""Errors a person can act on: one line that names the case, the file, what is wrong and what would be
right.
"""

import errno
import re

LONGEST_LINE = 400
"""Characters of an error line; in a longer one paths are shortened, and what is still too long loses its
middle.
"""
_LONG_PATH = re.compile(r"(?:/[^/:;,]+){4,}")
"""Four or more folders. Words that follow the path up to the next sign count as the name of its last one."""


def printable(text: str, *, limit: int = LONGEST_LINE) -> str:
    """One line of at most `limit` characters: what a terminal cannot show is escaped. Of a line that is too
    long, each path keeps its last two names; what is still too long is cut in the middle.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > limit:
        text = _LONG_PATH.sub(lambda path: ".../" + "/".join(path.group().split("/")[-2:]), text)
    if len(text) <= limit:
        return text
    n_first = limit * 2 // 3
    return f"{text[:n_first]} ... {text[n_first + 5 - limit :]}"


class _ToldError(Exception):
    """An error of one line, or of several where each is given by itself; they can be printed, whatever the
    names and values in them.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self.args)


class InputError(_ToldError):
    """The input has a problem; the command line prints it in one line and exits with 1."""


class UsageError(_ToldError):
    """The command or a setting is wrong; the command line prints it in one line and exits with 2."""


def refuse(*rules: tuple[object, str], error: type[Exception] = UsageError) -> None:
    """Raise the error with the reason of the first rule that is broken.

    Args:
        rules: of each whether it is broken (anything that counts as true), and the reason for the user.
        error: what is raised.
    """
    for is_broken, reason in rules:
        if is_broken:
            raise error(reason)


def count_words(n: int, noun: str) -> str:
    """A number and its noun, in the plural where it is not 1."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: of a GPU or of the machine, in torch's words or
    Python's.
    """
    said = str(error)
    return isinstance(error, MemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because the disk or the quota is full. NumPy tells a write that was cut short
    without a number.
    """
    return error.errno in (None, errno.ENOSPC, errno.EDQUOT)

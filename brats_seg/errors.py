"""Errors a person can act on: one line that names the case, the file, what is wrong and what would be right."""


class InputError(Exception):
    """The input has a problem; the command line prints it in one line and exits with 1."""


class UsageError(Exception):
    """The command or a setting is wrong; the command line prints it in one line and exits with 2."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: of a GPU or of the machine, in torch's words or Python's."""
    said = str(error)
    return isinstance(error, MemoryError) or any(words in said for words in ("out of memory", "can't allocate memory", "not enough memory"))

"""Errors a person can act on: one line that names the case, the file, what is wrong and what would be right."""


class InputError(Exception):
    """The input has a problem; the command line prints it in one line and exits with 1."""


class UsageError(Exception):
    """The command or a setting is wrong; the command line prints it in one line and exits with 2."""

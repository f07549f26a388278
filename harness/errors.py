"""Errors that a person reads: each says what was wrong, where, and what to do."""

from __future__ import annotations


class VabenchError(Exception):
    """Base of every error that the command line prints as one sentence with a non-zero exit."""


class ConfigError(VabenchError):
    """A wrong name or a wrong value in a config, a preset or an override."""


class DataError(VabenchError):
    """A data file that is missing, unreadable or not what its name says."""


class ComponentError(VabenchError):
    """A component that is unknown or cannot be loaded."""


class SupervisionError(VabenchError):
    """A method, mask source or selection rule touched supervision that it did not declare, or the test split."""


class NotApplicable(VabenchError):
    """The method is undefined on this task (an empty group, rho = 1, an unbiased base model): a typed outcome."""


class Skipped(VabenchError):
    """The cell cannot run here (a missing file, package or device): a typed outcome with its reason."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, in one line; its kind where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

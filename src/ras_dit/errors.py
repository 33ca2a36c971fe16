"""The errors that ras-dit raises itself."""

from __future__ import annotations


class RASError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do."""


class UnsupportedError(RASError):
    """A model, pipeline or feature that RAS cannot be applied to as it is."""


class RASWarning(UserWarning):
    """A call that will do less than it seems to ask for."""

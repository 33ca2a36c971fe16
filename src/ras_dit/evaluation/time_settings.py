"""How the time stage measures: apart from it, so that a plan is checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ras_dit.errors import RASError
from ras_dit.validation import parse_size

_KEYS = ("runs", "batch", "size", "threads")


@dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """How times are measured.

    Attributes:
        runs: Timed rounds; an untimed one goes before.
        batch: Pictures in one call.
        threads: Threads of torch; ``None`` is the manifest's.
        size: Width and height in pixels; ``None`` is the manifest's.
    """

    runs: int = 3
    batch: int = 1
    threads: int | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        for name in ("runs", "batch"):
            _check_count(name, getattr(self, name))
        if self.threads is not None:
            _check_count("threads", self.threads)
        parse_size(self.size, "time.size")

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> TimeSettings:
        """The settings under ``time`` in a YAML file.

        Raises:
            RASError: If one is unknown or out of range.
        """
        unknown = sorted(str(key) for key in data if key not in _KEYS)
        if unknown:
            raise RASError(f"time has {', '.join(unknown)}; expected {', '.join(_KEYS)}")
        return cls(**data)


def _check_count(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise RASError(f"time.{name}={value!r}; expected an integer of at least 1")

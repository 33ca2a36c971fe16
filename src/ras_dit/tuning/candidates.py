"""What a search proposes: how a run would sample, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ras_dit.config import RASConfig


@dataclass(frozen=True)
class Candidate:
    """One way to sample.

    Attributes:
        steps: Denoising steps.
        fields: Fields of its ``RASConfig``; none is the stock pipeline.
        shift: Factor on the scheduler's own shift of the noise levels; ``None`` leaves them to
            the scheduler.
    """

    steps: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    shift: float | None = None

    @property
    def config(self) -> RASConfig | None:
        """The configuration; ``None`` for the stock pipeline."""
        return RASConfig(**self.fields) if self.fields else None

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """What the pipeline's call gets as ``sigmas``; ``None`` for nothing.

        Even levels ``u`` from 1 to ``1 / steps``, shifted to ``shift * u / (1 + (shift - 1) * u)``.
        The scheduler shifts them once more, by its own factor; the two are multiplied.
        """
        if self.shift is None:
            return None
        even = [1 - step / self.steps for step in range(self.steps)]
        return tuple(round(self.shift * u / (1 + (self.shift - 1) * u), 6) for u in even)

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline's call that belong to it."""
        sigmas = self.sigmas
        call: dict[str, Any] = {"num_inference_steps": self.steps}
        return call if sigmas is None else call | {"sigmas": list(sigmas)}

    def replace(self, **changes: Any) -> Candidate:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in self.fields.items()}
        return {"steps": self.steps, "fields": plain, "shift": self.shift}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """The candidate of :meth:`to_dict`."""
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data["fields"].items()}
        return cls(data["steps"], fields, data["shift"])

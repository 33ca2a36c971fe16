"""Pipelines of diffusers on which RAS is refused, with the reason.

A pipeline can be refused although its transformer is supported: because it calls the transformer
in a way that RAS cannot follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ras_dit.errors import UnsupportedError

# Class of the pipeline: why not, and what to do instead.
REFUSED_PIPELINES: Mapping[str, str] = MappingProxyType({})


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that RAS cannot follow.

    Raises:
        UnsupportedError: With the reason.
    """
    for kind in type(pipe).__mro__:
        reason = REFUSED_PIPELINES.get(kind.__name__)
        if reason is not None:
            raise UnsupportedError(f"RAS does not work on {kind.__name__}: {reason}")

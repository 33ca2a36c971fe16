"""What RAS is refused on, with the reason: classes of transformers, and classes of pipelines.

A pipeline can be refused although its transformer is supported: because it calls the transformer
in a way that RAS cannot follow. Reasons are whole sentences without a capital and say what to do
where there is something to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ras_dit.errors import UnsupportedError

TRANSFORMERS: Mapping[str, str] = MappingProxyType(
    {
        "SanaTransformer2DModel": (
            "its feed-forward layers are convolutions over the whole image and its attention is "
            "linear, so its tokens cannot be computed one without the other"
        ),
    }
)

PIPELINES: Mapping[str, str] = MappingProxyType({})


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that RAS cannot follow.

    Raises:
        UnsupportedError: With the reason.
    """
    for kind in type(pipe).__mro__:
        reason = PIPELINES.get(kind.__name__)
        if reason is not None:
            raise UnsupportedError(f"RAS does not work on {kind.__name__}: {reason}")

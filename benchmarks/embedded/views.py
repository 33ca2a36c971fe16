"""Which rows of which evaluation stand in which table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ras_dit.evaluation.rows import Row

QUALITY = ("emoji kept", "emoji recognised", "FD-emoji", "PSNR", "SSIM")
TASKS = (
    *("emoji kept", "emoji single", "emoji two", "emoji counting", "emoji colours"),
    *("emoji position", "emoji pattern", "emoji background colours"),
)
RATIOS = (0.75, 0.5, 0.25, 0.125)


@dataclass(frozen=True, kw_only=True)
class View:
    """One table.

    Attributes:
        name: Of its files.
        title: Its heading.
        source: The evaluation that it is a part of.
        steps: Steps of its rows.
        metrics: Scores by which its sparse rows choose tokens.
        statistics: Its numbers.
        ratios: Ratios of its sparse rows.
        dense: Further dense rows, by steps.
    """

    name: str
    title: str
    source: str
    steps: tuple[int, ...]
    metrics: tuple[str, ...]
    statistics: tuple[str, ...] = QUALITY
    ratios: tuple[float, ...] = RATIOS
    dense: tuple[int, ...] = ()

    def has(self, row: Row) -> bool:
        """Whether a row stands here for its own sake, not as another's control."""
        if row.scheduler is not None or row.cache is not None:
            return False
        sampling = row.sampling
        if sampling is None:
            return row.steps in (*self.steps, *self.dense)
        return (
            row.steps in self.steps
            and sampling.metric in self.metrics
            and sampling.sample_ratio in self.ratios
        )


VIEWS: Sequence[View] = (
    View(
        name="table6",
        title="Table 6: what captions promise",
        source="short",
        steps=(28,),
        metrics=("std",),
        statistics=TASKS,
        dense=(14,),
    ),
    View(
        name="table7",
        title="Table 7: long captions",
        source="detailed",
        steps=(28,),
        metrics=("std", "l2"),
    ),
    View(
        name="table8",
        title="Table 8: by what tokens are chosen",
        source="short",
        steps=(7,),
        metrics=("std", "l2", "random"),
        ratios=(0.25,),
    ),
    View(
        name="table9-10",
        title="Tables 9 and 10: ratios and steps",
        source="short",
        steps=(28, 14, 10, 7, 5),
        metrics=("std", "l2", "random"),
        dense=(4, 3),
    ),
)

"""What the numbers of a diagnosis mean, in plain words, by thresholds that are stated."""

from __future__ import annotations

from dataclasses import dataclass

from ras_dit.diagnosis.measure import Diagnosis, Part

# Spread of ln |derivative| over tokens: below, little to win by selection; from the second, much.
LITTLE_SPREAD, MUCH_SPREAD = 0.5, 0.8
# Rank correlations: what is below tells nothing, what is above the second tells much.
WEAK, STRONG = 0.2, 0.5
# Cost saved: below, nothing that a user would notice.
NOTICEABLE = 1.05
# One error matters this many times more than another before it is called the larger one.
LARGER = 1.5
# Share of rounding in the second derivative from which it is not to be trusted.
MUCH_ROUNDING = 0.2


@dataclass(frozen=True)
class Verdict:
    """A verdict.

    Attributes:
        headline: One sentence.
        reasons: A sentence or two on each question, with its numbers and thresholds.
    """

    headline: str
    reasons: tuple[str, ...]


def judge(diagnosis: Diagnosis) -> Verdict:
    """Put a diagnosis into words."""
    reasons = [
        _selection(diagnosis),
        _persistence(diagnosis),
        _scores(diagnosis),
        _edges(diagnosis),
        _neighbours(diagnosis),
        *_parts(diagnosis),
        *_rounding(diagnosis),
    ]
    return Verdict(_headline(diagnosis), tuple(reasons))


def _mean(diagnosis: Diagnosis, name: str) -> float:
    return diagnosis.summary[name].mean


def _widest(diagnosis: Diagnosis) -> float:
    return max(_mean(diagnosis, "slope_spread"), _mean(diagnosis, "bend_spread"))


def _headline(diagnosis: Diagnosis) -> str:
    spread = _widest(diagnosis)
    known, past = _mean(diagnosis, "bend_saving"), _mean(diagnosis, "bend_saving_3")
    bound = f"at most {known:.2f}x with a second-order solver if every token's need were known"
    if spread < LITTLE_SPREAD:
        return (
            f"Little to win by selecting tokens ({bound}): tokens change alike, so a better "
            "solver, fewer steps and kept text are where time can be saved."
        )
    much = "Much" if spread >= MUCH_SPREAD else "Something"
    if past < NOTICEABLE:
        return (
            f"{much} to win by selecting tokens in theory ({bound}), but which tokens need work "
            f"cannot be told from three steps before ({past:.2f}x)."
        )
    return (
        f"{much} to win by selecting tokens: {bound}, {past:.2f}x by what was seen three steps "
        "before."
    )


def _selection(diagnosis: Diagnosis) -> str:
    first, second = (_mean(diagnosis, f"{word}_spread") for word in ("slope", "bend"))
    size = "little" if _widest(diagnosis) < LITTLE_SPREAD else "something"
    if _widest(diagnosis) >= MUCH_SPREAD:
        size = "much"
    return (
        f"**Spread over tokens:** {first:.2f} (first derivative) and {second:.2f} (second), so "
        f"{size} to win by selection (little below {LITTLE_SPREAD:g}, much from "
        f"{MUCH_SPREAD:g}). Cost saved at equal error if every token's need were known: "
        f"{_mean(diagnosis, 'slope_saving'):.2f}x at order 1, "
        f"{_mean(diagnosis, 'bend_saving'):.2f}x at order 2; no method that only chooses tokens "
        "saves more."
    )


def _persistence(diagnosis: Diagnosis) -> str:
    first, second = (_mean(diagnosis, f"{word}_persistence_3") for word in ("slope", "bend"))
    word = "fades"
    if first < WEAK:
        word = "is gone"
    elif first >= STRONG:
        word = "holds"
    return (
        f"**Persistence:** over three steps the order of tokens {word}: rank correlation "
        f"{first:.2f} of the first derivative, {second:.2f} of the second (gone below "
        f"{WEAK:g}, holds from {STRONG:g}). By it, {_mean(diagnosis, 'slope_saving_3'):.2f}x and "
        f"{_mean(diagnosis, 'bend_saving_3'):.2f}x are left of the savings above."
    )


def _scores(diagnosis: Diagnosis) -> str:
    # std keeps low scores active, l2 high ones: this is the sign that each of them needs.
    std, l2 = _mean(diagnosis, "slope_std"), _mean(diagnosis, "slope_l2")
    words = []
    for name, useful, found in (("std", -std, std), ("l2", l2, l2)):
        word = "points the right way" if useful >= WEAK else "says little"
        if useful <= -WEAK:
            word = "points the wrong way"
        words.append(f"{name} ({found:+.2f}) {word}")
    return (
        f"**Scores:** against the change that follows, {' and '.join(words)} (from {WEAK:g} on in "
        "the direction that the paper keeps: low std, high l2)."
    )


def _edges(diagnosis: Diagnosis) -> str:
    edges = _mean(diagnosis, "slope_edges")
    word = "change more" if edges >= WEAK else "do not change more"
    if edges <= -WEAK:
        word = "change less"
    return f"**Edges:** tokens with edges {word} than others (rank correlation {edges:+.2f})."


def _neighbours(diagnosis: Diagnosis) -> str:
    alike = _mean(diagnosis, "neighbours")
    word = "tells little of" if alike < WEAK else "tells something of"
    if alike >= STRONG:
        word = "tells much of"
    return (
        f"**Neighbours:** what is new in a token {word} its neighbours (correlation "
        f"{alike:+.2f}), which bounds what could be passed on to tokens left out."
    )


def _parts(diagnosis: Diagnosis) -> list[str]:
    ratios = [part.ratio for part in diagnosis.parts if part.ratio is not None]
    if not ratios:
        return []
    ratio = min(ratios)
    held, stale, real, fewer = (
        _found(diagnosis, name, ratio) for name in ("held", "stale", "all", "fewer")
    )
    order = _compare(held, stale)
    cure = "both matter alike: forecast outputs, and keys and values, too."
    if order > 0:
        cure = "forecasting outputs comes first; forecasting keys and values wins less."
    elif order < 0:
        cure = "the old keys and values come first: forecast them, or refresh them more often."
    first = (
        f"**Parts** (ratio {ratio:g}, random tokens): held outputs alone err by {_size(held)}, "
        f"stale keys and values alone by {_size(stale)}, so {cure}"
    )
    said = [first]
    text = diagnosis.part("text")
    if text is not None:
        order = _compare(text, held)
        word = "about as much as held outputs, so keep it only where its work is a large share."
        if order < 0:
            word = "less than held outputs, so it is not what spoils a run."
        elif order > 0:
            word = "more than held outputs, so compute it anew."
        said.append(f"**Text:** kept text alone errs by {_size(text)}, {word}")
    order = _compare(real, fewer)
    word = "ties with"
    if order:
        word = "loses to" if order > 0 else "beats"
    said.append(
        f"**Fewer steps** (ratio {ratio:g}): a sparse run with random tokens errs by "
        f"{_size(real)} and {word} {fewer.cost:.0f} dense steps of the same solver "
        f"({_size(fewer)})."
    )
    return said


def _found(diagnosis: Diagnosis, name: str, ratio: float) -> Part:
    part = diagnosis.part(name, ratio)
    assert part is not None
    return part


def _rounding(diagnosis: Diagnosis) -> list[str]:
    if diagnosis.rounding < MUCH_ROUNDING:
        return []
    said = (
        f"**Rounding:** in {diagnosis.facts['dtype']}, rounding of the velocity makes "
        f"{100 * diagnosis.rounding:.0f} % of the second derivative or more; measure again with "
        "--dtype float32, or with fewer steps."
    )
    return [said]


def _compare(one: Part, other: Part) -> int:
    """1 where the first error is the larger one by far, -1 where the second is, else 0."""
    first, second = one.estimate.mean, other.estimate.mean
    return (first > LARGER * second) - (second > LARGER * first)


def _size(part: Part) -> str:
    return f"{100 * part.estimate.mean:.2g} %"

"""From votes to results: tallies, tests, agreement. Writing them is ``report.py``'s work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ras_dit.errors import RASError
from ras_dit.study.collect import Collection, Vote, collect
from ras_dit.study.folder import KEY, Key, Manifest, read_key, read_manifest
from ras_dit.study.inference import Proportion, fleiss_kappa, holm, sign_test


@dataclass(frozen=True)
class Tally:
    """Votes per answer.

    Attributes:
        levels: Number of votes from "A is obviously better" to "B is obviously better".
    """

    levels: tuple[int, int, int, int, int]

    @property
    def total(self) -> int:
        """All votes."""
        return sum(self.levels)

    @property
    def a(self) -> Proportion:
        """Votes that prefer A, obviously or slightly."""
        return Proportion(self.levels[0] + self.levels[1], self.total)

    @property
    def similar(self) -> Proportion:
        """Votes for similar quality."""
        return Proportion(self.levels[2], self.total)

    @property
    def b(self) -> Proportion:
        """Votes that prefer B, obviously or slightly."""
        return Proportion(self.levels[3] + self.levels[4], self.total)

    @property
    def b_of_decided(self) -> Proportion:
        """Votes that prefer B among those that prefer one: ties apart."""
        return Proportion(self.b.count, self.a.count + self.b.count)

    @property
    def p_value(self) -> float:
        """Exact two-sided sign test of A against B, ties apart."""
        return sign_test(self.a.count, self.b.count)


@dataclass(frozen=True)
class PromptResult:
    """The votes on one pair.

    Attributes:
        question: Id of the question.
        prompt: What the pictures were made from.
        tally: Its votes.
        p_holm: Its sign test, adjusted by Holm's method for the number of prompts.
    """

    question: str
    prompt: str
    tally: Tally
    p_holm: float


@dataclass(frozen=True)
class Balance:
    """How many prefer one thing, the other, or neither.

    Attributes:
        first: Those who prefer the first.
        second: Those who prefer the second.
        ties: Those who prefer neither.
    """

    first: int
    second: int
    ties: int

    @property
    def p_value(self) -> float:
        """Exact two-sided sign test, ties apart."""
        return sign_test(self.first, self.second)


@dataclass(frozen=True)
class Analysis:
    """The results of a study.

    Attributes:
        manifest: The study.
        key: Its answer key.
        collection: All that was handed in.
        votes: The votes that are counted.
        with_partial: Whether half-finished participants are counted.
        overall: All counted votes.
        prompts: The votes of each pair, in the manifest's order.
        people: Participants who prefer A more often, B more often, or both equally often.
        sides: Votes for the left and the right picture, whichever configuration made it.
        a_on_left: Votes given while A was on the left.
        kappa: Fleiss' kappa over complete participants, on A, similar and B.
    """

    manifest: Manifest
    key: Key
    collection: Collection
    votes: tuple[Vote, ...]
    with_partial: bool
    overall: Tally
    prompts: tuple[PromptResult, ...]
    people: Balance
    sides: Balance
    a_on_left: Proportion
    kappa: float | None


def analyse_study(
    folder: Path,
    *,
    key_file: Path | None = None,
    answer_files: Sequence[Path] = (),
    with_partial: bool = False,
) -> Analysis:
    """Analyse the votes of a study, also while it is being served.

    Args:
        folder: The study folder.
        key_file: Its answer key; ``None`` is the one in the folder.
        answer_files: Files of static exports to merge.
        with_partial: Count the answers of half-finished participants too.

    Raises:
        RASError: If the study, its key or its answers cannot be read, or there is nothing to
            count.
    """
    manifest = read_manifest(folder)
    key = read_key(folder / KEY if key_file is None else key_file, manifest.study)
    pictures = {name for question in manifest.questions for name in question.images}
    if pictures != set(key.images) or {q.id for q in manifest.questions} != set(key.seeds):
        raise RASError("the answer key does not cover the manifest's pictures; restore the folder")
    return analyse_votes(collect(folder, manifest, key, answer_files), manifest, key, with_partial)


def analyse_votes(
    collection: Collection, manifest: Manifest, key: Key, with_partial: bool = False
) -> Analysis:
    """Analyse collected votes.

    Args:
        collection: The votes.
        manifest: The study.
        key: Its answer key.
        with_partial: Count the answers of half-finished participants too.

    Raises:
        RASError: If there is nothing to count.
    """
    counted = collection.complete | (collection.partial if with_partial else frozenset())
    votes = tuple(vote for vote in collection.votes if vote.participant in counted)
    if not votes:
        cure = "count half-finished ones with --include-partial" if collection.partial else ""
        refused = "".join(f"; refused {file.name}: {file.reason}" for file in collection.refused)
        raise RASError(
            f"no participant answered all {len(manifest.questions)} questions, "
            f"{len(collection.partial)} answered some{refused}; {cure or 'wait for answers'}"
        )
    by_question: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_question[vote.question].append(vote)
    tallies = [_tally(by_question[question.id]) for question in manifest.questions]
    adjusted = holm([tally.p_value for tally in tallies])
    return Analysis(
        manifest=manifest,
        key=key,
        collection=collection,
        votes=votes,
        with_partial=with_partial,
        overall=_tally(votes),
        prompts=tuple(
            PromptResult(question.id, question.prompt, tally, p_holm)
            for question, tally, p_holm in zip(manifest.questions, tallies, adjusted, strict=True)
        ),
        people=_people(votes),
        sides=_sides(votes),
        a_on_left=Proportion(sum(vote.left == "a" for vote in votes), len(votes)),
        kappa=_agreement(collection, manifest),
    )


def shown_choice(vote: Vote) -> int:
    """The choice as it was given: 1 is "the left one is obviously better"."""
    return vote.level if vote.left == "a" else 6 - vote.level


def _tally(votes: Iterable[Vote]) -> Tally:
    counts = Counter(vote.level for vote in votes)
    return Tally((counts[1], counts[2], counts[3], counts[4], counts[5]))


def _people(votes: Iterable[Vote]) -> Balance:
    # The votes of one person depend on each other; people do not.
    leaning: Counter[int] = Counter()
    for vote in votes:
        leaning[vote.participant] += (vote.level > 3) - (vote.level < 3)
    return _balance(leaning.values())


def _sides(votes: Iterable[Vote]) -> Balance:
    return _balance(shown_choice(vote) - 3 for vote in votes)


def _balance(values: Iterable[int]) -> Balance:
    signs = Counter((value > 0) - (value < 0) for value in values)
    return Balance(first=signs[-1], second=signs[1], ties=signs[0])


def _agreement(collection: Collection, manifest: Manifest) -> float | None:
    # Fleiss' kappa wants every rater to rate everything, so complete participants only.
    by_question: dict[str, list[Vote]] = defaultdict(list)
    for vote in collection.votes:
        if vote.participant in collection.complete:
            by_question[vote.question].append(vote)
    if not by_question:
        return None
    tallies = [_tally(by_question[question.id]) for question in manifest.questions]
    return fleiss_kappa([(t.a.count, t.similar.count, t.b.count) for t in tallies])

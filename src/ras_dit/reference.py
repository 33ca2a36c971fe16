"""The method's definition, run slowly: a full-length masked reference for every sparse run.

The stock transformer runs on *all* image tokens in every step. In a sparse step, each attention
operation then gets, for every inactive token, the key and value row of the last step in which
that token was active (attention recovery, Eq. 2), and the noise prediction of inactive tokens
gives way to the last one computed while they were active. Where a trace says that one of two
guidance branches did not run, its tokens count as inactive, text and all, and its noise prediction
differs from the other branch's by as much as in the step before. Since tokens meet nowhere but in
attention, this equals a run that computes the active tokens only.

Nothing is shared with the code that makes sparse steps fast. Where the image tokens stand in an
attended sequence is *measured* on the model (:mod:`ras_dit.probe`), not taken from its
description: a wrong description makes the two disagree.

Shape letters: B images, R rows of the model batch, N image tokens, A active tokens, S length of
an attended sequence, H heads, D head width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ras_dit.adapters import TransformerDescription, describe
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.masked_branch import MaskedBranch
from ras_dit.probe import (
    attention_call,
    noise_of,
    probe_attention,
    read_latents,
    with_noise,
)
from ras_dit.tokens import TokenGrid, TokenLayout
from ras_dit.trace import Call, Trace

ActiveSets = Sequence[torch.Tensor | None]


def masked_reference(
    pipe: Any,
    active: Trace | ActiveSets,
    /,
    *,
    description: TransformerDescription | None = None,
    keeps_text: bool = False,
    **call: Any,
) -> torch.Tensor:
    """Run a stock pipeline with the given active sets at full length.

    The pipeline is left as it was found. Generators in ``call`` are used up as in any run, so
    give fresh ones. Compiled transformers and attention backends other than torch's
    ``scaled_dot_product_attention`` cannot be followed.

    Args:
        pipe: A pipeline with a transformer and a scheduler, without RAS enabled.
        active: A trace, or per call of ``scheduler.step`` the indices of the active tokens of
            each image, int64 ``[B, A]``, ``None`` where all are active.
        description: Of a transformer that ras-dit does not know: its arguments, blocks and patch
            are taken from there, the places of its tokens are measured.
        keeps_text: Whether text tokens are active in no sparse step either; a trace says so
            itself.
        **call: The arguments of the pipeline's call.

    Returns:
        The final latents, as the pipeline gives them for ``output_type="latent"``.

    Raises:
        UnsupportedError: If the pipeline or its transformer is of an unknown kind.
        RASError: If the active sets do not fit the run: another number of steps, of images or
            of tokens.
    """
    parts = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    transformers = [part for part in parts if isinstance(part, nn.Module)]
    scheduler = getattr(pipe, "scheduler", None)
    if not transformers or scheduler is None:
        raise UnsupportedError(
            f"{type(pipe).__name__} has no transformer or no scheduler; expected a diffusers "
            "pipeline such as StableDiffusion3Pipeline"
        )
    reference = MaskedReference(
        transformers, active, description=description, keeps_text=keeps_text
    )
    with reference:
        with _after_each_step(scheduler, reference.next_step):
            output = pipe(**{**call, "output_type": "latent", "return_dict": False})
        # Some pipelines answer with the output of another one that they hold.
        latents: torch.Tensor = getattr(output[0], "images", output[0])
        reference.check_finished(images=latents.shape[0])
    return latents


class MaskedReference(TorchFunctionMode):
    """Makes a stock transformer follow given active sets at full length, while entered.

    ``transformer(...)`` may be called any number of times per step: the i-th call of a step is
    branch i (of guidance) and has caches of its own. A branch without caches, whose latents
    changed their shape, or which got another table of positions, runs dense by itself.
    :meth:`next_step` ends a step.

    Args:
        transformer: A transformer with a description, without RAS enabled; or several that take
            turns.
        active: As for :func:`masked_reference`.
        description: As for :func:`masked_reference`.
        keeps_text: As for :func:`masked_reference`.

    Raises:
        RASError: If the active sets are malformed or of another transformer; on a call, if they
            do not fit its latents.
    """

    def __init__(
        self,
        transformer: nn.Module | Sequence[nn.Module],
        active: Trace | ActiveSets,
        *,
        description: TransformerDescription | None = None,
        keeps_text: bool = False,
    ) -> None:
        super().__init__()
        self._transformers = [transformer] if isinstance(transformer, nn.Module) else transformer
        self._description = description or describe(self._transformers[0])
        self._layout: TokenLayout | None = None
        self._grid: TokenGrid | None = None
        self._calls: list[tuple[Call, ...]] = []
        if isinstance(active, Trace):
            name = type(self._transformers[0]).__name__
            if active.transformer not in {name, self._description.transformer}:
                raise RASError(
                    f"the trace is of a {active.transformer}, but the pipeline has a {name}"
                )
            self._grid = active.grid
            keeps_text = active.keeps_text
            self._calls = [step.calls for step in active.steps]
            active = [step.active for step in active.steps]
        self._active = list(active)
        self._keeps_text = keeps_text
        _check_sets(self._active)
        self._branches: dict[tuple[int, int], MaskedBranch] = {}
        self._step = 0
        self._next_branch = 0
        self._running: MaskedBranch | None = None
        self._inside = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for transformer in self._transformers:
            self._handles += [
                transformer.register_forward_pre_hook(self._before, with_kwargs=True),
                transformer.register_forward_hook(self._after),
            ]
            # What stands before the blocks, such as a refiner, sees every token in every step.
            for name in self._description.blocks:
                for block in getattr(transformer, name):
                    self._handles += [
                        block.register_forward_pre_hook(self._enter_block),
                        block.register_forward_hook(self._leave_block, always_call=True),
                    ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._branches.clear()
        self._running = None
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def next_step(self) -> None:
        """End a step: the next call of the transformer is the first branch of the next one."""
        self._step += 1
        self._next_branch = 0

    def check_finished(self, images: int) -> None:
        """Raises :class:`RASError` unless every step and every image had its active set."""
        given = {sets.shape[0] for sets in self._active if sets is not None}
        if given - {images}:
            raise RASError(
                f"there are active sets for {given.pop()} images, but the run made {images}; "
                "give the call as many prompts as the recorded run had"
            )
        if self._step != len(self._active):
            raise RASError(
                f"there are active sets for {len(self._active)} steps, but the run made "
                f"{self._step}; give the call the arguments of the run that was recorded"
            )

    def _enter_block(self, _block: nn.Module, _args: Any) -> None:
        self._inside += 1

    def _leave_block(self, _block: nn.Module, _args: Any, _output: Any) -> None:
        self._inside -= 1

    def _before(
        self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._step >= len(self._active):
            raise RASError(
                f"there are active sets for {len(self._active)} steps, but the run makes more; "
                "give the call the arguments of the run that was recorded"
            )
        call = inspect.signature(transformer.forward).bind(*args, **kwargs)
        config: Any = transformer.config
        description = self._description
        latents = read_latents(
            call.arguments,
            description.latents,
            description.patch(config),
            frames_first=description.frames_first,
        )
        fixed = [call.arguments[name] for name in description.fixed]
        place = self._transformers.index(transformer), self._next_branch
        branch = self._branches.get(place)
        if branch is None or not branch.fits(latents.tensor, fixed):
            self._layout = description.layout(call.arguments, config)
            self._check_grid(self._layout)
            operations = probe_attention(transformer, call, latents)
            branch = MaskedBranch(
                latents.tensor.shape, fixed, latents.tokens, operations, self._keeps_text
            )
            self._branches[place] = branch
        runs = self._rows_run(latents.tensor.shape[0])
        self._next_branch += 1
        assert self._layout is not None
        active = self._active[self._step]
        mask = None
        if active is not None:
            rows = latents.tensor.shape[0]
            mask = _active_mask(active, rows, self._layout, latents.num_tokens)
        device = latents.tensor.device
        branch.start(
            None if mask is None else mask.to(device), None if runs is None else runs.to(device)
        )
        self._running, self._inside = branch, 0

    def _rows_run(self, rows: int) -> torch.Tensor | None:
        """Rows of the call to come that run, bool ``[R]`` on the CPU; ``None`` if all do."""
        if not self._calls or self._next_branch >= len(self._calls[self._step]):
            return None
        call = self._calls[self._step][self._next_branch]
        if call.num_rows == call.batch:
            return None
        runs = torch.zeros(rows, dtype=torch.bool)
        first = 0 if self._description.conditional_first else rows - call.num_rows
        runs[first : first + call.num_rows] = True
        return runs

    def _check_grid(self, layout: TokenLayout) -> None:
        if self._grid is not None and self._grid != layout.grid:  # sets alone do not tell
            raise RASError(
                f"the trace has image tokens {self._grid.shape}, but the latents make "
                f"{layout.grid.shape}; give the call the height and width of the recorded run"
            )

    def _after(self, transformer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        branch, self._running = self._running, None
        assert branch is not None
        part = self._transformers.index(transformer)
        first = self._branches.get((part, self._next_branch - 2))
        return with_noise(output, branch.finish(noise_of(output), first))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._running is None or func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, rest = attention_call(*args, **kwargs)
        key, value = self._running.recover(query, key, value, in_block=self._inside > 0)
        return func(query, key, value, **rest)


def _active_mask(
    active: torch.Tensor, rows: int, layout: TokenLayout, num_image: int
) -> torch.Tensor:
    """Bool ``[R, N]`` on the CPU: the active sets, repeated over the guidance branches."""
    num_tokens = layout.grid.num_tokens
    images = active.shape[0]
    if rows % images:
        raise RASError(
            f"the active sets are for {images} images, but the model batch has {rows} rows; "
            "give the call as many prompts as the recorded run had"
        )
    if active.numel() and int(active.max()) >= num_tokens:
        raise RASError(
            f"token {int(active.max())} is active, but there are only {num_tokens} image tokens; "
            "give the call the height and width of the recorded run"
        )
    mask = torch.zeros(images, num_image, dtype=torch.bool)
    return mask.scatter_(1, active.cpu() + layout.offset, True).repeat(rows // images, 1)


def _check_sets(active: ActiveSets) -> None:
    images = {sets.shape[0] for sets in active if sets is not None and sets.ndim == 2}
    for step, sets in enumerate(active):
        if sets is None:
            continue
        if sets.ndim != 2 or sets.dtype != torch.int64 or not sets.shape[0] or len(images) > 1:
            raise RASError(
                f"the active set of step {step} is {sets.dtype} {list(sets.shape)}; expected "
                "int64 [B, A] with the same number of images B in every step"
            )
        ordered = sets.sort(1).values
        if bool((ordered[:, :1] < 0).any()) or bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise RASError(f"the active set of step {step} has negative or repeated tokens")


@contextmanager
def _after_each_step(scheduler: Any, notify: Callable[[], None]) -> Iterator[None]:
    """Call ``notify`` after each ``scheduler.step``, until the block is left."""
    stock = scheduler.step

    @functools.wraps(stock)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        notify()
        return result

    own = vars(scheduler)
    shadowed = own.get("step")
    own["step"] = step
    try:
        yield
    finally:
        if shadowed is None:
            del own["step"]
        else:
            own["step"] = shadowed

"""What a family of transformers looks like, as data.

A new family is one :class:`TransformerDescription` and one row of tests; no code is copied from
the model and nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ras_dit.adapters.layouts import first_of, latent_layout, square_patch
from ras_dit.tokens import Patch, TokenLayout, TokenOrder


@dataclass(frozen=True, kw_only=True)
class Work:
    """Arithmetic of one forward pass per row of the model batch, in FLOPs (2 per multiply-add).

    The whole forward with ``n`` active of ``N`` image tokens and ``T`` text tokens costs
    ``per_sample + N * per_embedded_token + n * per_image_token + T * per_text_token
    + (n + T) * (N + T) * joint_pair + n * N * image_pair + n * T * cross_pair
    + N * N * embedded_pair + T * T * text_pair``; ``T * per_kept_text_token`` and no other text
    row where a sparse step keeps the text.
    Its caches hold ``(N + T) * joint_kv + N * image_kv + N * output`` elements.

    Attributes:
        per_sample: Independent of the number of tokens (timestep and pooled-text embedding,
            adaptive layer norms, ...).
        per_embedded_token: What runs on every image token even in a sparse step, because it
            comes before the first block (patch embedding).
        per_image_token: Linear layers that each active image token passes.
        per_text_token: Linear layers that each text token passes, the key and value
            projections of cross attention among them.
        per_kept_text_token: The part of them that comes before the first block.
        joint_pair: Attention over the joint sequence, per query-key pair.
        image_pair: Attention among image tokens only, per query-key pair.
        cross_pair: Attention from image to text tokens, per query-key pair.
        embedded_pair: Attention among all image tokens before the first block (refiners), which
            every step runs whole, per query-key pair.
        text_pair: Attention among text tokens alone, per query-key pair.
        joint_kv: Cached key and value elements per token of the joint sequence, all layers; with
            them the output elements where text tokens have an output, too.
        image_kv: Cached key and value elements per image token of image-only attention, all
            layers, with the heads that the attention operation sees: where a model repeats
            grouped keys and values before it, the repeated ones are what the cache holds.
        output: Cached output elements per image token.
    """

    per_sample: int
    per_embedded_token: int
    per_image_token: int
    per_text_token: int
    per_kept_text_token: int = 0
    joint_pair: int = 0
    image_pair: int = 0
    cross_pair: int = 0
    embedded_pair: int = 0
    text_pair: int = 0
    joint_kv: int = 0
    image_kv: int = 0
    output: int = 0


@dataclass(frozen=True)
class TokenArgument:
    """A block argument with one row per token, which a sparse step has to gather.

    Attributes:
        name: Parameter name in the block's ``forward``. It holds a tensor, ``None``, or a tuple
            or list of them.
        dim: Dimension along which the tokens lie: the image tokens, or the whole sequence with
            the text in the model's own order. Dimension 0 is that of the model batch, or 1 where
            all rows share one table; with ``dim=0`` there is no batch dimension.
        members: Which members of a tuple have token rows, with all that is in them; all members
            where not given.
        ndim: Only a tensor with so many dimensions has token rows. For arguments that come in
            two forms, one per token and one for all of them.
        broadcast: With ``dim=0``: the model lines the table up with ``[B, tokens, ...]`` by plain
            broadcasting.

    A table with a single row along ``dim`` (other than 0) is the same for every token and stays.
    """

    name: str
    dim: int
    members: tuple[int, ...] | None = None
    ndim: int | None = None
    broadcast: bool = False


# The blocks of many models get the text in a stream of its own.
TEXT_STREAM = (TokenArgument("encoder_hidden_states", dim=1),)


@dataclass(frozen=True)
class TransformerDescription:
    """Where region-adaptive sampling takes hold of one class of transformers.

    Attributes:
        transformer: Name of the class in diffusers.
        family: Name that people use.
        blocks: Names of the block lists, in the order of the forward pass.
        attention: Paths, inside a block, of the attention modules whose keys and values span the
            image tokens. Paths that a block lacks, or has as ``None``, are passed over.
        token_order: Where the image tokens stand in the attended sequence.
        output: Path of the module whose output has one row per image token, or per row of the
            sequence.
        work: The arithmetic of a forward pass from the transformer's configuration.
        latents: Name of the transformer's argument that holds the latents.
        text: Name of the transformer's argument that holds the text tokens, ``[B, T, ...]``.
        hidden: Name of the blocks' argument that holds the image tokens.
        token_arguments: Further block arguments with one row per token, of some of the blocks.
        streams: Further block arguments that hold a row per image token and, unlike tables,
            are handed on from block to block (a control branch beside the main one).
        counts: Block arguments, of some of the blocks, that count the references in front; a
            sparse call has none of these.
        whole: Names of lists of modules between the blocks whose first argument and output are
            the image tokens, each at its place, because they treat frames one by one.
        text_arguments: Block arguments with one row per text token, which a sparse step that keeps
            the text of the last dense step (``text="keep"``) cuts to none (nothing to cut
            where text comes with the image); ``None`` where such a step cannot be had.
        fixed: Arguments of the transformer that cached keys depend on as a whole (tables of
            positions): a call in which their contents differ from those of the call that filled
            the caches runs dense.
        residuals: Arguments of the transformer that are lists of per-token residuals (ControlNet).
        layout: The tokens of a call, from its arguments and the transformer's configuration.
        patch: Frames, height and width of a token's patch in the latents that the scheduler
            sees, from the transformer's configuration.
        frames_first: Whether those latents are ``[B, F, C, H, W]``.
        starts: For the order ``"text_around"``: the first image token of each row of the model
            batch, int64 ``[R]``, from the arguments of a call.
        token_timestep: Name of an argument that may hold a timestep per image token, ``[R, N]``:
            tokens with timestep 0 are given (the first frame of image-to-video), so they are
            never chosen while there are others.
        conditional_first: Where both branches of guidance are stacked in one batch: whether the
            conditional one comes first. A wrong answer costs only quality.
        batch_dims: Dimension of the model batch, by name, of arguments of the transformer that
            have it elsewhere than in front.
        expand: Whether the rows behind the last block have to be as many as before the first one
            again, because what follows treats them by their place.
        attention_by_sample: Whether a processor makes one operation for each row of the batch.
        fused: Name of the kernels in ``ras_dit.kernels`` that make the sparse attention calls
            where they can, instead of the processor.
    """

    transformer: str
    family: str
    blocks: tuple[str, ...]
    attention: tuple[str, ...]
    token_order: TokenOrder
    output: str
    work: Callable[[Mapping[str, Any]], Work]
    latents: str = "hidden_states"
    text: str = "encoder_hidden_states"
    hidden: str = "hidden_states"
    token_arguments: tuple[TokenArgument, ...] = ()
    streams: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    text_arguments: tuple[TokenArgument, ...] | None = None
    fixed: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()
    layout: Callable[[Mapping[str, Any], Mapping[str, Any]], TokenLayout] = latent_layout
    patch: Callable[[Mapping[str, Any]], Patch] = square_patch
    frames_first: bool = False
    starts: Callable[[Mapping[str, Any]], torch.Tensor] | None = None
    token_timestep: str | None = None
    conditional_first: bool = False
    batch_dims: Mapping[str, int] = field(default_factory=dict)
    expand: bool = False
    attention_by_sample: bool = False
    fused: str | None = None

    def count_rows(self, arguments: Mapping[str, Any]) -> int:
        """Rows of the model batch in a call of the transformer."""
        latents = arguments[self.latents]
        return len(latents) if isinstance(latents, list | tuple) else int(latents.shape[0])

    @property
    def shared_arguments(self) -> frozenset[str]:
        """Arguments of the transformer that all rows of the model batch share: tables."""
        tables = {argument.name for argument in self.token_arguments if argument.dim == 0}
        return frozenset({*self.fixed, *tables})

    def first_latents(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """The latents of a call, those of its first image where they come as a list."""
        return first_of(arguments[self.latents])

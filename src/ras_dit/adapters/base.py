"""What a family of transformers looks like, as data.

A new family is one :class:`TransformerDescription` and one row of tests; no code is copied from
the model and nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

TokenOrder = Literal["image_first", "text_first"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Arithmetic of one forward pass per row of the model batch, in FLOPs (2 per multiply-add).

    The whole forward with ``n`` active of ``N`` image tokens and ``T`` text tokens costs
    ``per_sample + N * per_embedded_token + n * per_image_token + T * per_text_token
    + (n + T) * (N + T) * joint_pair + n * N * image_pair + n * T * cross_pair``.
    Its caches hold ``(N + T) * joint_kv + N * image_kv + N * output`` elements.

    Attributes:
        per_sample: Independent of the number of tokens (timestep and pooled-text embedding,
            adaptive layer norms, ...).
        per_embedded_token: What runs on every image token even in a sparse step, because it
            comes before the first block (patch embedding).
        per_image_token: Linear layers that each active image token passes.
        per_text_token: Linear layers that each text token passes, the key and value
            projections of cross attention among them.
        joint_pair: Attention over the joint sequence, per query-key pair.
        image_pair: Attention among image tokens only, per query-key pair.
        cross_pair: Attention from image to text tokens, per query-key pair.
        joint_kv: Cached key and value elements per token of the joint sequence, all layers.
        image_kv: Cached key and value elements per image token of image-only attention, all
            layers, with the heads that the attention operation sees: where a model repeats
            grouped keys and values before it, the repeated ones are what the cache holds.
        output: Cached output elements per image token.
    """

    per_sample: int
    per_embedded_token: int
    per_image_token: int
    per_text_token: int
    joint_pair: int = 0
    image_pair: int = 0
    cross_pair: int = 0
    joint_kv: int = 0
    image_kv: int = 0
    output: int = 0


@dataclass(frozen=True)
class TokenArgument:
    """A block argument with one row per token, which a sparse step has to gather.

    Attributes:
        name: Parameter name in the block's ``forward``. It holds a tensor, ``None``, or a tuple.
        dim: Dimension of the tensor along which the tokens lie. Dimension 0 is that of the model
            batch, or 1 where all rows share one table.
    """

    name: str
    dim: int


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
        output: Path of the module after which every row is one image token of the output.
        work: The arithmetic of a forward pass from the transformer's configuration.
        latents: Name of the transformer's argument that holds the latents.
        text: Name of the transformer's argument that holds the text tokens, ``[B, T, ...]``.
        hidden: Name of the blocks' argument that holds the image tokens.
        token_arguments: Further block arguments with one row per image token.
        fixed: Arguments of the transformer that cached keys depend on as a whole (tables of
            positions): a call in which their contents differ from those of the call that filled
            the caches runs dense.
        residuals: Arguments of the transformer that are lists of per-token residuals (ControlNet).
        packed: Whether latents are ``[B, N, C * p * p]`` rather than ``[B, C, H, W]``.
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
    fixed: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()
    packed: bool = False

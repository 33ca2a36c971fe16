"""The masked reference is the stock pipeline where it must be, and the method elsewhere."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, StableDiffusion3Pipeline
from torch import nn
from torch.nn import functional as F

import ras_dit
from pipelines import JOINT, POOLED, TEXT_TOKENS, sd3_inputs, sd3_pipeline, sd3_transformer
from ras_dit import masked_branch as branch_module
from ras_dit import probe as probe_module
from ras_dit import reference as reference_module
from ras_dit.errors import RASError, UnsupportedError
from ras_dit.probe import Latents, probe_attention, read_latents
from ras_dit.reference import MaskedReference, masked_reference
from ras_dit.tokens import TokenGrid
from ras_dit.trace import StepTrace, Trace, pack_active

GRID = TokenGrid(6, 10)
N = GRID.num_tokens
STEPS = 10
Sets = list[torch.Tensor | None]


def random_sets(
    images: int = 1, *, steps: int = STEPS, active: int = 24, dense: tuple[int, ...] = (0, 1, 5)
) -> Sets:
    """Different active tokens in each step and image; image ``i`` is the same in every batch."""

    def one(step: int, image: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * step + image)
        return torch.randperm(N, generator=generator)[:active].sort().values

    return [
        None if step in dense else torch.stack([one(step, image) for image in range(images)])
        for step in range(steps)
    ]


def stock(pipe: StableDiffusion3Pipeline, **call: Any) -> torch.Tensor:
    return pipe(**call).images


def trace_of(sets: Sets, *, transformer: str = "SD3Transformer2DModel") -> Trace:
    steps = tuple(
        StepTrace(
            index=index,
            kind="dense" if active is None else "sparse",
            sigma=None,
            num_tokens=N,
            calls=(),
            packed=None if active is None else pack_active(active, N),
        )
        for index, active in enumerate(sets)
    )
    return Trace(transformer, GRID, TEXT_TOKENS, 1, "float32", 0, steps)


def read(tensor: torch.Tensor, side: int = 2) -> Latents:
    return read_latents({"x": tensor}, "x", (1, side, side), frames_first=False)


def call_inputs(seed: int, rows: int = 1) -> dict[str, torch.Tensor]:
    """Arguments of one call of the transformer, 6 x 10 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, 4, 12, 20, generator=generator),
        "encoder_hidden_states": torch.randn(rows, TEXT_TOKENS, JOINT, generator=generator),
        "pooled_projections": torch.randn(rows, POOLED, generator=generator),
        "timestep": torch.full((rows,), 500.0),
    }


def follow(
    transformer: nn.Module, sets: Sets, calls: list[list[dict[str, Any]]]
) -> list[list[torch.Tensor]]:
    """The reference's noise predictions, for the calls of each step."""
    noise = []
    with torch.no_grad(), MaskedReference(transformer, sets) as reference:
        for step in calls:
            noise.append([transformer(**call, return_dict=False)[0] for call in step])
            reference.next_step()
    return noise


def by_token(noise: torch.Tensor) -> torch.Tensor:
    """``[B, C, H, W]`` as ``[B, N, 4 * C]``, written out on its own."""
    return nn.functional.unfold(noise, kernel_size=2, stride=2).transpose(1, 2)


both_models = pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd35"])


# -- whole runs ------------------------------------------------------------------------------------


@both_models
def test_without_sparse_steps_it_is_the_stock_pipeline_bitwise(dual: bool) -> None:
    pipe = sd3_pipeline(dual=dual)
    reference = masked_reference(pipe, [None] * STEPS, **sd3_inputs(2))
    assert torch.equal(reference, stock(pipe, **sd3_inputs(2)))


@both_models
def test_with_every_token_active_it_is_the_stock_pipeline(dual: bool) -> None:
    pipe = sd3_pipeline(dual=dual)
    sets = [None, *[torch.arange(N).expand(2, -1)] * (STEPS - 1)]
    reference = masked_reference(pipe, sets, **sd3_inputs(2))
    assert (reference - stock(pipe, **sd3_inputs(2))).abs().max() <= 1e-6


def test_active_sets_change_the_result_token_by_token() -> None:
    pipe, sets = sd3_pipeline(), random_sets()
    reference = masked_reference(pipe, sets, **sd3_inputs())
    assert (reference - stock(pipe, **sd3_inputs())).abs().max() > 1e-3
    last = sets[-1]
    assert last is not None
    inactive = next(token for token in range(N) if token not in last)
    others = torch.cat([last[:, 1:], torch.tensor([[inactive]])], 1)
    exchanged = masked_reference(pipe, [*sets[:-1], others], **sd3_inputs())
    assert (reference - exchanged).abs().max() > 1e-4


def test_the_order_of_active_tokens_is_irrelevant() -> None:
    pipe, sets = sd3_pipeline(dual=True), random_sets()
    flipped = [None if active is None else active.flip(1) for active in sets]
    first, second = (masked_reference(pipe, s, **sd3_inputs()) for s in (sets, flipped))
    assert torch.equal(first, second)


@both_models
@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["no guidance", "guidance"])
def test_a_batch_equals_single_runs(dual: bool, guidance: float) -> None:
    """Each image follows its own set, also behind the rows of the other guidance branch."""
    pipe = sd3_pipeline(dual=dual)
    sets = random_sets(3)
    batch = masked_reference(pipe, sets, **sd3_inputs(3) | {"guidance_scale": guidance})
    for image in range(3):
        inputs = {
            name: value[image : image + 1] if isinstance(value, torch.Tensor | list) else value
            for name, value in sd3_inputs(3).items()
        }
        own = [None if active is None else active[image : image + 1] for active in sets]
        single = masked_reference(pipe, own, **inputs | {"guidance_scale": guidance})
        # Ten guided steps: the stock pipeline itself differs by 1e-5 here.
        assert (batch[image] - single[0]).abs().max() <= 1e-4


def test_heun_makes_two_evaluations_per_inference_step() -> None:
    pipe = sd3_pipeline(scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0))
    evaluations = 2 * STEPS - 1
    dense = masked_reference(pipe, [None] * evaluations, **sd3_inputs())
    assert torch.equal(dense, stock(pipe, **sd3_inputs()))
    sparse = masked_reference(pipe, random_sets(steps=evaluations), **sd3_inputs())
    assert (dense - sparse).abs().max() > 1e-3


def test_a_trace_says_the_same_as_its_active_sets() -> None:
    pipe, sets = sd3_pipeline(), random_sets()
    by_trace = masked_reference(pipe, Trace.from_json(trace_of(sets).to_json()), **sd3_inputs())
    assert torch.equal(by_trace, masked_reference(pipe, sets, **sd3_inputs()))


def test_the_pipeline_is_left_as_it_was_found() -> None:
    pipe = sd3_pipeline()
    before, attributes = stock(pipe, **sd3_inputs()), set(vars(pipe.scheduler))
    masked_reference(pipe, random_sets(), **sd3_inputs())
    with pytest.raises(RASError):
        masked_reference(pipe, random_sets(steps=4), **sd3_inputs())
    assert set(vars(pipe.scheduler)) == attributes
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks
    assert torch.equal(stock(pipe, **sd3_inputs()), before)


# -- single calls ----------------------------------------------------------------------------------


@both_models
def test_noise_of_inactive_tokens_is_the_last_one_computed_while_active(dual: bool) -> None:
    transformer = sd3_transformer(dual=dual)
    sets = random_sets(2, steps=4, dense=(0,))
    steps = follow(transformer, sets, [[call_inputs(step, rows=4)] for step in range(4)])
    noise = [by_token(step[0]) for step in steps]
    for step in range(1, 4):
        active = sets[step]
        assert active is not None
        for row in range(4):
            is_active = torch.isin(torch.arange(N), active[row % 2])
            moved = (noise[step][row] != noise[step - 1][row]).any(-1)
            assert torch.equal(moved, is_active)


@both_models
def test_the_same_input_again_gives_the_same_output(dual: bool) -> None:
    transformer = sd3_transformer(dual=dual)
    dense, sparse = follow(transformer, random_sets(steps=2, dense=(0,)), [[call_inputs(1)]] * 2)
    assert (dense[0] - sparse[0]).abs().max() <= 1e-6


@both_models
def test_only_the_past_of_inactive_tokens_matters(dual: bool) -> None:
    transformer = sd3_transformer(dual=dual)
    sets = random_sets(steps=2, dense=(0,))
    active = sets[1]
    assert active is not None
    inactive = ~torch.isin(read(torch.zeros(1, 4, 12, 20)).tokens, active)

    def after(first: dict[str, Any], second: dict[str, Any]) -> torch.Tensor:
        return by_token(follow(transformer, sets, [[first], [second]])[1][0])[:, active[0]]

    def disturbed(call: dict[str, Any]) -> dict[str, Any]:
        latents = torch.where(inactive, call["hidden_states"] + 3, call["hidden_states"])
        return {**call, "hidden_states": latents}

    plain = after(call_inputs(1), call_inputs(2))
    assert torch.equal(after(call_inputs(1), disturbed(call_inputs(2))), plain)
    assert (after(disturbed(call_inputs(1)), call_inputs(2)) - plain).abs().max() > 1e-3


def test_text_is_always_fresh() -> None:
    transformer, sets = sd3_transformer(), random_sets(steps=2, dense=(0,))
    other = {**call_inputs(2), "encoder_hidden_states": call_inputs(3)["encoder_hidden_states"]}
    plain = follow(transformer, sets, [[call_inputs(1)], [call_inputs(2)]])[1][0]
    changed = follow(transformer, sets, [[call_inputs(1)], [other]])[1][0]
    assert (plain - changed).abs().max() > 1e-3


def test_keys_outlive_steps_in_which_their_token_is_inactive() -> None:
    """What a token was two steps ago still counts, unless it was active in between."""
    transformer = sd3_transformer()
    half = torch.arange(N // 2).unsqueeze(0)
    for middle, counts in ((half, True), (torch.arange(N).unsqueeze(0), False)):
        sets: Sets = [None, middle, half]
        first, second = (
            follow(transformer, sets, [[call_inputs(seed)], [call_inputs(8)], [call_inputs(9)]])
            for seed in (1, 2)
        )
        difference = by_token(first[2][0] - second[2][0])[:, : N // 2].abs().max()
        assert bool(difference > 1e-3) is counts


def test_a_dense_step_makes_what_came_before_irrelevant() -> None:
    transformer = sd3_transformer(dual=True)
    half = torch.arange(N // 2).unsqueeze(0)
    first, second = (
        follow(transformer, [None, half, None, half], [[call_inputs(s)] for s in (seed, 7, 8, 9)])
        for seed in (1, 2)
    )
    assert not torch.equal(first[1][0], second[1][0])
    assert torch.equal(first[3][0], second[3][0])


def test_branches_in_calls_of_their_own_equal_branches_in_one_batch() -> None:
    transformer, sets = sd3_transformer(dual=True), random_sets(steps=3, dense=(0,))
    together = [call_inputs(step, rows=2) for step in range(3)]
    apart = [
        [{name: value[row : row + 1] for name, value in call.items()} for row in range(2)]
        for call in together
    ]
    whole = follow(transformer, sets, [[call] for call in together])
    split = follow(transformer, sets, apart)
    for one, two in zip(whole, split, strict=True):
        assert (one[0] - torch.cat(two)).abs().max() <= 1e-5


def test_a_branch_without_caches_runs_dense() -> None:
    """One that appears in a sparse step, and one whose batch changes there."""
    transformer, sets = sd3_transformer(), random_sets(steps=2, dense=(0,))
    with torch.no_grad():
        dense = transformer(**call_inputs(2), return_dict=False)[0]
    late = follow(transformer, sets, [[call_inputs(1)], [call_inputs(3), call_inputs(2)]])
    assert torch.equal(late[1][1], dense)
    changed = follow(transformer, sets, [[call_inputs(1, rows=2)], [call_inputs(2)]])
    assert torch.equal(changed[1][0], dense)


# -- where the tokens are --------------------------------------------------------------------------


class Toy(nn.Module):
    """Text before the image, the image last token first; then each attends on its own."""

    def __init__(self, *, mixes: bool = False, attends: bool = True) -> None:
        super().__init__()
        self.mixes, self.attends = mixes, attends

    def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image = hidden_states.roll(1, 1) if self.mixes else hidden_states
        if not self.attends:
            return image
        joint = torch.cat([text, image.flip(1)], 1).unsqueeze(1)
        joint = joint + F.scaled_dot_product_attention(joint, joint, joint)
        words, image = joint[:, :, : text.shape[1]], joint[:, :, text.shape[1] :].flip(2)
        image = image + F.scaled_dot_product_attention(query=image, key=words, value=words)
        image = image + F.scaled_dot_product_attention(image, key=image, value=image)
        return image.squeeze(1)


def probe(module: nn.Module, **arguments: torch.Tensor) -> list[list[list[int]]]:
    call = inspect.signature(module.forward).bind(**arguments)
    latents = read_latents(arguments, "hidden_states", (1, 2, 2), frames_first=False)
    operations = probe_attention(module, call, latents)
    return [operation.tokens.tolist() for operation in operations]


def test_positions_are_found_in_any_order() -> None:
    found = probe(Toy(), hidden_states=torch.randn(2, 9, 6), text=torch.randn(2, 4, 6))
    joint = [-1] * 4 + list(range(9))[::-1]
    assert found == [[joint] * 2, [[-1] * 4] * 2, [list(range(9))] * 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_positions_in_stable_diffusion(dtype: torch.dtype) -> None:
    """Image before text in every block, and the second attention of two blocks of SD3.5."""
    inputs = {name: tensor.to(dtype) for name, tensor in call_inputs(1, rows=2).items()}
    found = probe(sd3_transformer(dual=True).to(dtype), **inputs)
    image, joint = list(range(N)), [*range(N), *[-1] * TEXT_TOKENS]
    assert found == [[row] * 2 for row in (joint, image, joint, image, joint)]


def test_models_that_the_method_does_not_fit_are_refused() -> None:
    arguments = {"hidden_states": torch.randn(1, 9, 6), "text": torch.randn(1, 4, 6)}
    with pytest.raises(UnsupportedError, match="without attention"):
        probe(Toy(mixes=True), **arguments)
    with pytest.raises(UnsupportedError, match="has seen the image"):
        probe(Toy(attends=False), **arguments)


def test_tokens_are_counted_in_rows() -> None:
    expected = [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    assert read(torch.zeros(1, 4, 4, 6)).tokens.tolist() == expected
    assert read(torch.zeros(1, 3, 8)).tokens.tolist() == [[0], [1], [2]]
    with pytest.raises(RASError, match="do not divide into patches"):
        read(torch.zeros(1, 4, 8, 6), 4)
    with pytest.raises(UnsupportedError, match="without latents"):
        read(torch.zeros(4, 8), 4)


@pytest.mark.parametrize("frames_first", [False, True])
def test_tokens_of_videos_are_counted_frame_by_frame(frames_first: bool) -> None:
    """Frames 2, height 4, width 6 with patches 1 x 2 x 2: six tokens a frame."""
    video = torch.zeros(1, 2, 3, 4, 6) if frames_first else torch.zeros(1, 3, 2, 4, 6)
    arguments = {"x": list(video)}
    found = read_latents(arguments, "x", (1, 2, 2), frames_first=frames_first)
    places = found.tokens.expand(found.tensor[0].shape)
    places = places.transpose(0, 1) if frames_first else places
    assert places[0, 1].tolist() == [[6, 6, 7, 7, 8, 8]] * 2 + [[9, 9, 10, 10, 11, 11]] * 2
    assert found.num_tokens == 12
    assert torch.equal(found.argument(video)[0], video[0])


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_another_number_of_steps_is_refused(steps: int) -> None:
    with pytest.raises(RASError, match=f"active sets for {steps} steps"):
        masked_reference(sd3_pipeline(), random_sets(steps=steps), **sd3_inputs())


@pytest.mark.parametrize(("given", "run"), [(2, 1), (1, 2), (3, 2)])
def test_another_number_of_images_is_refused(given: int, run: int) -> None:
    with pytest.raises(RASError, match=f"active sets (are )?for {given} images"):
        masked_reference(sd3_pipeline(), random_sets(given), **sd3_inputs(run))


def test_another_size_is_refused() -> None:
    turned = sd3_inputs(height=40, width=24)
    with pytest.raises(RASError, match=r"image tokens \(6, 10\)"):
        masked_reference(sd3_pipeline(), trace_of(random_sets()), **turned)
    small = sd3_inputs(height=16, width=16)
    with pytest.raises(RASError, match="only 16 image tokens"):
        masked_reference(sd3_pipeline(), random_sets(), **small)


def test_another_transformer_is_refused() -> None:
    trace = trace_of(random_sets(), transformer="FluxTransformer2DModel")
    with pytest.raises(RASError, match="trace is of a FluxTransformer2DModel"):
        masked_reference(sd3_pipeline(), trace, **sd3_inputs())
    with pytest.raises(UnsupportedError, match="no transformer"):
        masked_reference(object(), trace)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([1, 2]),
        torch.tensor([[1.0, 2.0]]),
        torch.zeros(0, 2, dtype=torch.int64),
        torch.tensor([[1, 1]]),
        torch.tensor([[-1, 1]]),
        torch.tensor([[1], [2]]),
    ],
    ids=["flat", "float", "empty", "repeated", "negative", "images"],
)
def test_malformed_sets_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(RASError, match="active set of step"):
        MaskedReference(sd3_transformer(), [None, torch.tensor([[1, 2]]), wrong])


def test_a_transformer_that_is_already_sparse_is_refused() -> None:
    """Else a run would be compared with itself."""
    transformer = sd3_transformer()
    block = transformer.transformer_blocks[1]

    def shorten(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"][:, :9]}

    with torch.no_grad(), MaskedReference(transformer, [None, None]) as reference:
        transformer(**call_inputs(1))
        reference.next_step()
        block.register_forward_pre_hook(shorten, with_kwargs=True)
        with pytest.raises(RASError, match="is RAS still enabled"):
            transformer(**call_inputs(1))


def test_a_pipeline_with_ras_enabled_is_refused() -> None:
    pipe = sd3_pipeline()
    with (
        ras_dit.enable(pipe, sample_ratio=0.4),
        pytest.raises(RASError, match="is RAS still enabled"),
    ):
        masked_reference(pipe, random_sets(), **sd3_inputs())


def test_nothing_is_shared_with_the_engine() -> None:
    imported = {
        node.module
        for module in (probe_module, branch_module, reference_module)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ras_dit")
    }
    assert imported == {
        f"ras_dit.{name}"
        for name in ("adapters", "errors", "masked_branch", "probe", "tokens", "trace")
    }

"""RAS beside what people switch on: compilation, offload, quantised layers, adapters, copies."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ras_dit
from families import distance, lora_weights
from families_flux import flux_call, flux_pipeline, flux_transformer
from family_laws import SPARSE, run, run_sparse
from pipelines import hooks_of, sd3_inputs, sd3_pipeline
from ras_dit.reference import masked_reference


def flux() -> dict[str, Any]:
    return flux_call(2)


def sd3() -> dict[str, Any]:
    call = sd3_inputs(2) | {"num_inference_steps": 7}
    del call["output_type"]
    return call


def check(pipe: Any, call: Callable[[], dict[str, Any]]) -> torch.Tensor:
    """Sparse equals the reference on the pipeline as it is; gives the sparse latents."""
    latents, trace = run_sparse(pipe, call())
    assert sum(step.kind == "sparse" for step in trace.steps) >= 3
    assert distance(latents, masked_reference(pipe, trace, **call())) <= 1e-4
    return latents


# -- torch.compile ---------------------------------------------------------------------------------


one_layer = functools.partial(sd3_pipeline, layers=1)
# The last layer of SD3 has no text behind it, and Flux has layers of two kinds.
two_layers = functools.partial(sd3_pipeline, layers=2)


def short_flux() -> Any:
    transformer = flux_transformer(num_layers=1, num_single_layers=1)
    return flux_pipeline(components={"transformer": transformer})


@pytest.fixture
def counter() -> Any:
    torch._dynamo.reset()
    yield CompileCounterWithBackend("eager")
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "call", "when", "settings"),
    [
        (two_layers, sd3, "before", {}),
        (one_layer, sd3, "in place", {}),
        (one_layer, sd3, "after", {}),
        (short_flux, flux, "before", {}),
        (one_layer, sd3, "before", {"static_cache": True}),
        (one_layer, sd3, "before", {"cache_dtype": "int8", "text": "keep"}),
        (one_layer, sd3, "before", {"schedule": "linear"}),
    ],
    ids=[
        "sd3 before",
        "sd3 in place",
        "sd3 after",
        "flux before",
        "static caches",
        "small caches",
        "many ratios",
    ],
)
def test_a_compiled_transformer_has_three_graphs(
    build: Any, call: Any, when: str, settings: dict[str, Any], counter: Any
) -> None:
    """Dense, filling the caches, sparse; without breaks, and none is made in a second run.

    Further numbers of active tokens share one further graph with a symbolic length.
    """
    pipe = build()
    eager, _ = run_sparse(pipe, call(), **settings)
    stock = run(pipe, call())
    transformer = pipe.transformer
    torch._dynamo.utils.counters.clear()
    if when == "before":
        pipe.transformer = torch.compile(transformer, backend=counter)
    if when == "in place":
        transformer.compile(backend=counter)
    with ras_dit.enable(pipe, **SPARSE | settings):
        if when == "after":
            pipe.transformer = torch.compile(transformer, backend=counter)
        first = run(pipe, call())
        graphs = counter.frame_count
        second = run(pipe, call())
    expected = 4 if "schedule" in settings else 3
    assert (graphs, counter.frame_count) == (expected, expected)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert distance(first, eager) <= 1e-5
    assert torch.equal(first, second)
    assert distance(run(pipe, call()), stock) <= 1e-5


def test_blocks_compiled_one_by_one_are_refused() -> None:
    pipe = flux_pipeline()
    pipe.transformer.transformer_blocks[0].compile(backend="eager")
    with pytest.raises(ras_dit.UnsupportedError, match="compile the whole transformer"):
        ras_dit.enable(pipe, **SPARSE)
    assert hooks_of(pipe.transformer) == 0


# -- where and how weights lie ---------------------------------------------------------------------


def test_group_offload() -> None:
    pipe = flux_pipeline()
    expected = check(pipe, flux)
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    assert torch.equal(check(pipe, flux), expected)


def test_model_offload() -> None:
    pipe = flux_pipeline()
    expected = check(pipe, flux)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(check(pipe, flux), expected)


QUANTISED = """
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from families import distance
from families_flux import flux_call, flux_pipeline
from family_laws import run_sparse
from ras_dit.reference import masked_reference

pipe = flux_pipeline()
exact, _ = run_sparse(pipe, flux_call(2))
quantize_(pipe.transformer, Int8WeightOnlyConfig())
latents, trace = run_sparse(pipe, flux_call(2))
reference = masked_reference(pipe, trace, **flux_call(2))
weight = pipe.transformer.transformer_blocks[0].attn.to_k.weight
print(type(weight).__name__, distance(latents, reference) <= 1e-4, distance(latents, exact) > 1e-3)
"""


def test_layers_quantised_to_int8() -> None:
    """In a process of its own: diffusers imports torchao wherever it is installed."""
    folder = Path(sys.prefix) / "torchao"
    if not folder.is_dir():
        pytest.skip("needs torchao beside the environment; make test installs it")
    paths = [str(folder), str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUANTISED],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.split() == ["Int8Tensor", "True", "True"], ran.stderr


def test_channels_last() -> None:
    pipe = sd3_pipeline()
    pipe.transformer.to(memory_format=torch.channels_last)

    def call() -> dict[str, Any]:
        noise = torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))
        return sd3() | {"latents": noise.to(memory_format=torch.channels_last)}

    check(pipe, call)


def test_another_attention_backend() -> None:
    pipe = flux_pipeline()
    pipe.transformer.set_attention_backend("_native_math")
    check(pipe, flux)
    with ras_dit.enable(pipe, **SPARSE):
        pipe.transformer.set_attention_backend("native")
        late = run(pipe, flux())
    assert distance(late, check(pipe, flux)) <= 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_dtype_between_runs() -> None:
    pipe = sd3_pipeline()
    half = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in sd3().items()}
    with ras_dit.enable(pipe, **SPARSE) as handle:
        run(pipe, sd3())
        pipe.to(torch.bfloat16)
        assert run(pipe, half).dtype == torch.bfloat16
        assert handle.trace is not None
        assert handle.trace.dtype == "bfloat16"
        pipe.to(torch.float32)
        again = run(pipe, sd3())
    assert torch.equal(again, run_sparse(pipe, sd3())[0])


def test_a_tiled_autoencoder() -> None:
    pipe = sd3_pipeline()
    pipe.vae.enable_tiling()
    call = sd3() | {"output_type": "np"}
    stock = pipe(**call).images
    with ras_dit.enable(pipe, **SPARSE):
        images = pipe(**sd3() | {"output_type": "np"}).images
    assert images.shape == stock.shape == (2, 24, 40, 3)


# -- adapters of weights ---------------------------------------------------------------------------


def test_a_lora_scaled_and_unloaded_while_enabled() -> None:
    pipe = sd3_pipeline()
    plain = check(pipe, sd3)
    with ras_dit.enable(pipe, **SPARSE):
        pipe.load_lora_weights(lora_weights(), adapter_name="one")
        full = run(pipe, sd3())
        pipe.set_adapters(["one"], [0.3])
        weak = run(pipe, sd3())
        pipe.unload_lora_weights()
        bare = run(pipe, sd3())
    assert torch.equal(bare, plain)
    assert distance(full, plain) > 1e-2
    assert distance(weak, full) > 1e-2
    pipe.load_lora_weights(lora_weights(), adapter_name="one")
    assert torch.equal(check(pipe, sd3), full)
    pipe.set_adapters(["one"], [0.3])
    assert torch.equal(check(pipe, sd3), weak)


# -- copies, threads -------------------------------------------------------------------------------


def pickled(module: Any) -> Any:
    file = io.BytesIO()
    pickle.dump(module, file)
    file.seek(0)
    return pickle.load(file)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["copy", "pickle"])
def test_copies_of_an_enabled_pipeline_are_stock(duplicate: Any) -> None:
    pipe = sd3_pipeline()
    stock = run(pipe, sd3())
    sparse, _ = run_sparse(pipe, sd3())
    with ras_dit.enable(pipe, **SPARSE):
        run(pipe, sd3())
        transformer = duplicate(pipe.transformer)
        assert torch.equal(run(pipe, sd3()), sparse)
        other = copy.copy(pipe)
        other.transformer, other.scheduler = transformer, copy.deepcopy(pipe.scheduler)
        assert torch.equal(run(other, sd3()), stock)
        with ras_dit.enable(other, **SPARSE | {"sample_ratio": 0.7}) as handle:
            run(other, sd3())
            assert handle.trace is not None
            assert handle.trace.steps[2].num_active == 42
        assert torch.equal(run(pipe, sd3()), sparse)
    assert torch.equal(run(other, sd3()), stock)


def test_each_thread_has_its_own_pipeline() -> None:
    pipes = [sd3_pipeline(seed=seed) for seed in range(2)]
    expected = [run_sparse(pipe, sd3())[0] for pipe in pipes]
    found: dict[int, torch.Tensor] = {}

    def make(index: int) -> None:
        with torch.no_grad():
            found[index] = run(pipes[index], sd3())

    handles = [ras_dit.enable(pipe, **SPARSE) for pipe in pipes]
    threads = [threading.Thread(target=make, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.disable()
    assert all(torch.equal(found[index], expected[index]) for index in range(2))

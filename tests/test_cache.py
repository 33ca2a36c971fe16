"""K/V caches write the fresh rows of every layout, and nothing else."""

from __future__ import annotations

import pytest
import torch

from ras_dit.cache import KVCache
from ras_dit.fresh import FreshRows

B, H, N, T, D = 3, 2, 11, 4, 5


def layouts(length: int, name: str) -> torch.Tensor:
    if name == "heads contiguous":
        return torch.randn(B, H, length, D)
    if name == "heads from tokens":
        return torch.randn(B, length, H, D).transpose(1, 2)
    if name == "strided":
        return torch.randn(B, H, length, 2 * D)[..., ::2]
    return torch.randn(B, length, H, D)


@pytest.mark.parametrize("order", ["image_first", "text_first"])
@pytest.mark.parametrize("text", [0, T])
@pytest.mark.parametrize(
    ("name", "token_dim"),
    [
        ("heads contiguous", 2),
        ("heads from tokens", 2),
        ("strided", 2),
        ("tokens", 1),
    ],
)
def test_only_fresh_rows_change(order: str, text: int, name: str, token_dim: int) -> None:
    key, value = layouts(N + text, name), layouts(N + text, name)
    before = key.clone()
    active = torch.stack([torch.randperm(N)[:4].sort().values for _ in range(B)])
    new_key, new_value = layouts(4 + text, name), layouts(4 + text, name)
    cache = KVCache(key, value, token_dim, None)
    merged, _ = cache.merge(new_key, new_value, FreshRows(active, N, order))  # type: ignore[arg-type]
    expected = before.transpose(1, 2).clone() if token_dim == 2 else before
    fresh = new_key.transpose(1, 2) if token_dim == 2 else new_key
    image, words = (0, N) if order == "image_first" else (text, 0)
    fresh_image, fresh_words = (0, 4) if order == "image_first" else (text, 0)
    for b in range(B):
        expected[b, active[b] + image] = fresh[b, fresh_image : fresh_image + 4]
        expected[b, words : words + text] = fresh[b, fresh_words : fresh_words + text]
    assert torch.equal(merged.transpose(1, 2) if token_dim == 2 else merged, expected)


def test_contiguous_keys_are_kept_by_reference() -> None:
    key, value = torch.randn(B, H, N, D), torch.randn(B, H, N, D)
    cache = KVCache(key, value, 2, None)
    active = torch.arange(3).repeat(B, 1)
    merged, _ = cache.merge(key[:, :, :3] + 1, value[:, :, :3], FreshRows(active, N, "image_first"))
    assert merged.data_ptr() == key.data_ptr()
    assert cache.nbytes == key.nbytes + value.nbytes

"""Tokenizers of our own: one token per word of the grammar, letters for everything else.

Three folders that the stock classes `CLIPTokenizer` and `T5Tokenizer` read.
"""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from ras_dit.world import OBJECTS, SHAPES, vocabulary
from ras_dit.world.objects import plural

CLIP_ROWS: Final = 16
T5_ROWS: Final = 256
START, END = "<|startoftext|>", "<|endoftext|>"


def _merged_words(words: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    """Byte pair merges, trained until every word is a single token."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for word in words for _ in range(2)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [letter + "</w>" for letter in alphabet if letter + "</w>" not in model["vocab"]]
    return {token: index for index, token in enumerate([*tokens, START, END])}, merges


def make_clip() -> CLIPTokenizer:
    """The tokenizer of both CLIP encoders."""
    vocab, merges = _merged_words(vocabulary())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocab))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        (Path(folder) / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": CLIP_ROWS})
        )
        return CLIPTokenizer.from_pretrained(folder, model_max_length=CLIP_ROWS)


def make_t5() -> T5Tokenizer:
    """The tokenizer of the T5 encoder: a plural is the singular and its ending where it can be."""
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    names = [*OBJECTS, *SHAPES]
    split = {plural(name) for name in names if plural(name).startswith(name)}
    pieces += [("▁" + word, -1.0) for word in vocabulary() if word not in split]
    pieces += [("s", -2.0), ("es", -2.0), ("▁", -8.0)]
    pieces += [(c, -8.0) for c in string.printable.strip() if c != "s"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_ROWS)


def _pieces(tokenizer: T5Tokenizer) -> list[tuple[str, float]]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return [(piece, score) for piece, score in model["vocab"]]


def capitalised(tokenizer: T5Tokenizer) -> tuple[T5Tokenizer, list[int]]:
    """The tokenizer with capital words added, and for each token the one it stands for."""
    pieces = _pieces(tokenizer)
    index = {piece: number for number, (piece, _) in enumerate(pieces)}
    added: dict[str, int] = {}
    for word in sorted(vocabulary()):
        small = "▁" + word
        for form in ("▁" + word.capitalize(), "▁" + word.upper()):
            if small in index and form != small:
                added[form] = index[small]
    sources = [added.get(piece, number) for number, (piece, _) in enumerate(pieces)]
    missing = [form for form in added if form not in index]
    pieces += [(form, -1.0) for form in missing]
    sources += [added[form] for form in missing]
    made = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_ROWS)
    return made, sources

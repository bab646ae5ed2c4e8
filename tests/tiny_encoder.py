"""A sentence encoder of two layers whose vocabulary is the words of the test's own texts; nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:!?"


def write_encoder(folder: Path, texts: Iterable[str], seed: int = 3) -> Path:
    """Write a BERT of random weights (hidden 32, 2 layers) whose WordPiece vocabulary is the words of `texts`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())} - set(LETTERS))
    vocabulary = [*specials, *LETTERS, *(f"##{letter}" for letter in LETTERS), *words]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = ("pad", "unk", "cls", "sep", "mask")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        **{f"{role}_token": special for role, special in zip(roles, specials, strict=True)},
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    fast.save_pretrained(folder)
    BertModel(config).save_pretrained(folder)
    return folder

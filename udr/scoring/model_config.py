"""What a model folder, or a name on the hub, says of its language model without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from udr.artifacts import fingerprint_files
from udr.errors import ScorerUnavailable

__all__ = ["context_length", "model_fingerprint", "read_config"]


def read_config(name: str, revision: str = "main") -> Any:
    """The configuration of a model of `transformers`.

    Raises:
        ScorerUnavailable: it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ScorerUnavailable(f"{name}: cannot be read ({str(error).splitlines()[0]})") from None


def context_length(config: Any) -> int | None:
    """Tokens that the model reads; None if it does not say."""
    # the language model's settings stand one level deeper where it also reads images
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None


def model_fingerprint(name: str, revision: str, config: Any) -> str:
    """Tells two models apart: the content of a folder, or the commit that a name on the hub stands for today."""
    folder = Path(name)
    if folder.is_dir():
        return fingerprint_files(folder)
    return f"{name}@{getattr(config, '_commit_hash', None) or revision}"

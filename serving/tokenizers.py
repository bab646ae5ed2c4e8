"""Tokenizers by name, for token budgets; each is loaded when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from udr.errors import ConfigError, UnknownNameError
from udr.types import Tokenizer

__all__ = ["BYTES", "Tokenizers"]

BYTES = "bytes"


class _Bytes:
    """Counts bytes: no byte-level tokenizer makes more tokens of a text, so a budget in bytes always holds."""

    def encode(self, text: str) -> bytes:
        return text.encode("utf-8", "surrogatepass")


class _Loaded:
    """A tokenizer of transformers, without the special tokens that a server adds itself."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._using = threading.Lock()  # fast tokenizers change their truncation state while they work

    def encode(self, text: str) -> list[int]:
        with self._using:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


class Tokenizers:
    """The tokenizers that the service was given, and `bytes`."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._loaded: dict[str, Tokenizer] = {BYTES: _Bytes()}
        self._loading = threading.Lock()

    @property
    def names(self) -> list[str]:
        return sorted({BYTES, *self._places})

    def get(self, name: str) -> Tokenizer:
        """The tokenizer of that name.

        Raises:
            UnknownNameError: the service has none of that name.
            ConfigError: its files cannot be loaded.
        """
        with self._loading:
            if name not in self._loaded:
                if name not in self._places:
                    raise UnknownNameError("tokenizer", name, self.names)
                from transformers import AutoTokenizer

                try:
                    self._loaded[name] = _Loaded(AutoTokenizer.from_pretrained(self._places[name]))
                except (OSError, ValueError, KeyError) as error:
                    reason = str(error).splitlines()[0]
                    raise ConfigError(
                        f"tokenizer {name!r}: {self._places[name]}: cannot be loaded ({reason})"
                    ) from None
            return self._loaded[name]

"""Requests as token ids, by the LM's own tokenizer: one way for the LM in process and for one behind a server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from udr.errors import ConfigError, PromptTooLong, ScorerUnavailable

__all__ = ["LMTokenizer", "load_tokenizer"]


class LMTokenizer:
    """Composes token ids exactly, and reads answers back. `tokenizer` is one of `transformers`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def prefix_ids(self) -> list[int]:
        """What the tokenizer puts in front of any text (BOS, or nothing)."""
        with_special = list(self.tokenizer("a")["input_ids"])
        plain = self.encode("a")
        places = range(len(with_special) - len(plain) + 1)  # some tokenizers put a mark behind the text too
        return next((with_special[:i] for i in places if with_special[i : i + len(plain)] == plain), [])

    @cached_property
    def start_ids(self) -> list[int]:
        """The prefix, or the document mark where there is none: the first scored token needs a predecessor."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0):
            if token is not None:
                return self.prefix_ids or [token]
        return [0]

    @cached_property
    def stop_ids(self) -> list[int]:
        """End-of-text marks and every token with a newline in it."""
        stops = {self.tokenizer.eos_token_id} - {None}
        ids = list(range(len(self.tokenizer)))
        stops.update(
            i for i, text in zip(ids, self.tokenizer.batch_decode([[i] for i in ids]), strict=True) if "\n" in text
        )
        return sorted(stops)

    @cached_property
    def _anchor(self) -> str:
        """Text that keeps a tokenizer from inventing a space before a continuation."""
        first = self.tokenizer.convert_ids_to_tokens(self.encode("a"))[0]
        return "\n" if first.startswith("▁") else ""

    def token_ids(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Compose a request's token ids: BOS + context, and the continuation with the spaces the context ended in.

        The two parts are tokenised apart, so the boundary is exact and truncation can never cut the answer.
        """
        return self._compose([context], [continuation])[0]

    def requests(
        self, contexts: Sequence[str], continuations: Sequence[str], context_length: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of many requests, each context and each continuation of at least one token.

        Raises:
            ConfigError: an empty continuation.
            PromptTooLong: a request that exceeds the LM's context (names its number and length).
        """
        pairs = self._compose(contexts, continuations)
        for i, (context, continuation) in enumerate(pairs):
            if not continuation:
                raise ConfigError(f"request {i}: the continuation has no tokens")
            if len(context) + len(continuation) > context_length:
                raise PromptTooLong(
                    f"request {i}: {len(context)} + {len(continuation)} tokens, the LM reads {context_length}; "
                    "lower the token budget",
                    i,
                )
        return [c or self.start_ids for c, _ in pairs], [c for _, c in pairs]

    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]:
        """The shortest beginnings of whole tokens that tell the options apart behind `before`.

        An option stays whole where another one begins like all of it, or where its beginning alone would be read as
        other tokens.
        """
        ids = [self.token_ids(before, o)[1] for o in options]
        spaces = len(before) - len(before.rstrip(" "))
        found = []
        for own, option in zip(ids, options, strict=True):
            same = max((_common(own, other) for other in ids if other != own), default=0)
            text = str(self.tokenizer.decode([*self.encode(self._anchor), *own[: same + 1]]))
            text = text[len(self._anchor) + spaces :]
            whole = not option.startswith(text) or self.token_ids(before, text)[1] != own[: same + 1]
            found.append(option if whole else text)
        return tuple(found)

    def prompts(self, texts: Sequence[str], max_new_tokens: int, context_length: int) -> list[list[int]]:
        """Token ids of prompts that want an answer; the spaces a prompt ends in are left to the answer.

        Raises:
            PromptTooLong: a prompt that leaves no room for the answer.
        """
        found = [(self.prefix_ids + self.encode(t.rstrip(" "))) or self.start_ids for t in texts]
        for i, ids in enumerate(found):
            if len(ids) + max_new_tokens > context_length:
                raise PromptTooLong(
                    f"prompt {i}: {len(ids)} + {max_new_tokens} tokens, the LM reads {context_length}; "
                    "lower the token budget or the task's max_new_tokens"
                )
        return found

    def answer(self, ids: Sequence[int]) -> str:
        """The first line of what was generated, without spaces at its ends."""
        # what follows the first stop is padding, which some tokenizers would read as text
        stop = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self.tokenizer.decode(ids[: stop + 1], skip_special_tokens=True)
        return str(text).lstrip(" ").split("\n")[0].strip()

    def _compose(self, contexts: Sequence[str], continuations: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """`token_ids` of many requests; text that several of them hold is read once."""
        kept = [c.rstrip(" ") for c in contexts]
        ends = [a[len(k) :] + b for a, b, k in zip(contexts, continuations, kept, strict=True)]
        start_ids = self._encode_distinct(kept)
        end_ids = self._encode_distinct([self._anchor + e for e in ends])
        anchor = len(self.encode(self._anchor))
        return [
            (self.prefix_ids + start_ids[k], end_ids[self._anchor + e][anchor:])
            for k, e in zip(kept, ends, strict=True)
        ]

    def _encode_distinct(self, texts: Sequence[str]) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        found = self.tokenizer(distinct, add_special_tokens=False)["input_ids"] if distinct else []
        return dict(zip(distinct, found, strict=True))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def load_tokenizer(name: str, revision: str = "main") -> LMTokenizer:
    """Open the tokenizer of a local model folder or of a hub name; the weights are not needed.

    Raises:
        ScorerUnavailable: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        found = LMTokenizer(AutoTokenizer.from_pretrained(name, revision=revision))
        if not found.encode("a"):  # made of the configuration alone, without a word
            raise ValueError("no tokenizer's files there")
        return found
    except (OSError, ValueError, KeyError) as error:
        reason = ("" if Path(name).is_dir() else "no such folder; from the hub: ") + str(error).splitlines()[0]
        raise ScorerUnavailable(f"{name}: its tokenizer cannot be loaded ({reason})") from None

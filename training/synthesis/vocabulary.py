"""The words that a small text-to-image model knows, and what it reads of a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from udr.errors import ConfigError, DataError, UnknownNameError

__all__ = ["JOINING", "PAD", "Vocabulary", "caption_of", "words_of"]

PAD, BEGIN, END = 0, 1, 2  # ids that stand for no word
SPECIALS = ("<pad>", "<begin>", "<end>")
JOINING = ("a", "an", "and")  # what stands between the names of things


def words_of(text: str) -> list[str]:
    """Words in small letters, without signs."""
    return re.findall(r"\w+", text.lower())


def caption_of(names: Sequence[str]) -> str:
    """A caption of things by their names: `a red circle and an orange ring`."""
    return " and ".join(f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}" for name in names)


class Vocabulary:
    """Words by their ids; an unknown one is refused, since the model could make nothing of it.

    Args:
        words: all that are known, in an order that does not change.
        length: ids that the model reads of a prompt, its begin and its end included.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words, self.length = tuple(words), length
        self._ids = {word: i for i, word in enumerate(words, len(SPECIALS))}

    @classmethod
    def of(cls, texts: Iterable[str], length: int) -> Vocabulary:
        """The words of texts, and those that join them."""
        return cls(sorted({*JOINING, *(word for text in texts for word in words_of(text))}), length)

    def __len__(self) -> int:
        """Ids, those that stand for no word included."""
        return len(SPECIALS) + len(self.words)

    def ids(self, text: str) -> list[int]:
        """Ids of a text's words, without begin and end.

        Raises:
            UnknownNameError: a word that is not known.
        """
        found = []
        for word in words_of(text):
            if word not in self._ids:
                raise UnknownNameError("word", word, self.words)
            found.append(self._ids[word])
        return found

    def padded(self, text: str) -> list[int]:
        """What the model reads: begin, words, end, and nothing up to `length`.

        Raises:
            UnknownNameError: a word that is not known.
            ConfigError: more words than the model reads.
        """
        ids = [BEGIN, *self.ids(text), END]
        if len(ids) > self.length:
            raise ConfigError(f"{text[:60]!r}: {len(ids) - 2} words, and the model reads {self.length - 2}")
        return ids + [PAD] * (self.length - len(ids))


def check_names(names: Iterable[str]) -> None:
    """Raise DataError where a thing has no name in words."""
    for name in names:
        if not words_of(name):
            raise DataError(f"{name!r}: a thing needs a name in words")

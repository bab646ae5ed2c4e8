"""A LangChain example selector over any source of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.example_selectors import BaseExampleSelector

from udr.errors import ConfigError
from udr.integrations.sources import PoolSource, Source, open_source
from udr.types import Demonstration

__all__ = ["UDRExampleSelector"]


class UDRExampleSelector(BaseExampleSelector):
    """Chooses the examples of a few-shot prompt: a `BaseExampleSelector` for FewShotPromptTemplate and the like.

    Args:
        source: or where one is, as `udr.integrations.sources.open_source` takes it.
        k: how many.
        input_key: of the variables, the text that demonstrations are chosen for.
        output_key: of the examples, where the output stands.
        best_last: the best one stands next to the question (Li et al. 2023); False: first.
    """

    def __init__(
        self,
        source: Source | Mapping[str, Any],
        *,
        k: int = 4,
        input_key: str = "input",
        output_key: str = "output",
        best_last: bool = True,
    ) -> None:
        self.source = open_source(source) if isinstance(source, Mapping) else source
        self.k = k
        self.input_key = input_key
        self.output_key = output_key
        self.best_last = best_last

    def select_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
        """The chosen examples, with the metadata of each beside input and output.

        Raises:
            ConfigError: the variables lack `input_key`.
        """
        if self.input_key not in input_variables:
            raise ConfigError(f"no variable {self.input_key!r} among {', '.join(input_variables)}; set input_key")
        (found,) = self.source.choose([input_variables[self.input_key]], self.k)
        examples = [{**d.metadata, self.input_key: d.input, self.output_key: d.output} for d in found]
        return examples[::-1] if self.best_last else examples

    def add_example(self, example: dict[str, str]) -> str:
        """Store one more in the service's pool, its other keys as metadata, and give its id.

        Raises:
            ConfigError: the source is no pool of the service, or a key is missing.
        """
        if not isinstance(self.source, PoolSource):
            raise ConfigError("only a pool of the service takes examples")
        if missing := {self.input_key, self.output_key} - example.keys():
            raise ConfigError(f"the example lacks {', '.join(sorted(missing))}")
        metadata = {k: v for k, v in example.items() if k not in (self.input_key, self.output_key)}
        return self.source.add(Demonstration("", example[self.input_key], example[self.output_key], metadata=metadata))

"""A DSPy optimiser in the place of KNNFewShot; what it compiles can be saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from udr.errors import ConfigError
from udr.integrations.sources import Source, open_source
from udr.types import Demonstration

__all__ = ["Demonstrated", "UDRFewShot"]


class UDRFewShot(Teleprompter):  # type: ignore[misc]
    """Gives a program, for each call, the demonstrations that suit its inputs.

    As `dspy.KNNFewShot`, but the pool may be a living one of the service, the choice may be learnt, and the compiled
    program has `save` and `load`.

    Args:
        source: or where one is, as `udr.integrations.sources.open_source` takes it.
        k: demonstrations of a call.
        input_key: the input field that demonstrations are chosen for, and stand under.
        output_key: the output field that theirs stand under.
    """

    def __init__(
        self, source: Source | Mapping[str, Any], *, k: int = 4, input_key: str = "question", output_key: str = "answer"
    ) -> None:
        super().__init__()
        self.source = open_source(source) if isinstance(source, Mapping) else source
        self.k = k
        self.input_key = input_key
        self.output_key = output_key

    def compile(self, student: Any, *, teacher: Any = None, trainset: Any = None, **_: Any) -> Demonstrated:
        """The program with demonstrations; a teacher or trainset has nothing to add to the pool's own outputs.

        Raises:
            ConfigError: no predictor of the program has both fields.
        """
        return Demonstrated(
            student.reset_copy(), self.source, k=self.k, input_key=self.input_key, output_key=self.output_key
        )


class Demonstrated(dspy.Module):  # type: ignore[misc]
    """A program whose predictors are given demonstrations anew at each call.

    Args:
        program: whose predictors with both fields get them.
        source: of demonstrations; None: `load` states it.
        k: how many.
        input_key: see `UDRFewShot`.
        output_key: see `UDRFewShot`.
    """

    def __init__(
        self,
        program: Any,
        source: Source | None = None,
        *,
        k: int = 4,
        input_key: str = "question",
        output_key: str = "answer",
    ) -> None:
        super().__init__()
        self.program = program
        self.k = k
        self.input_key = input_key
        self.output_key = output_key
        self._source = source
        if not self._wanting(program):
            raise ConfigError(f"no predictor of this program has the fields {input_key!r} and {output_key!r}")

    def forward(self, **inputs: Any) -> Any:
        """Run the program with the demonstrations that suit its inputs.

        Raises:
            ConfigError: the inputs lack `input_key`, or no source was given or loaded.
        """
        if self.input_key not in inputs:
            raise ConfigError(f"no input {self.input_key!r} among {', '.join(inputs)}; set input_key")
        if self._source is None:
            raise ConfigError("this program has no source of demonstrations; load() one, or give it")
        (found,) = self._source.choose([str(inputs[self.input_key])], self.k)
        own = self.program.deepcopy()  # calls run side by side
        for predictor in self._wanting(own):
            predictor.demos = [self._example(d) for d in reversed(found)]  # the best one stands next to the question
        return own(**inputs)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The program's state, and where the demonstrations are; never a key.

        Raises:
            ConfigError: the source came from no place that could be noted.
        """
        if self._source is None:
            raise ConfigError("this program has no source of demonstrations")
        settings = {"k": self.k, "input_key": self.input_key, "output_key": self.output_key}
        return {
            "program": self.program.dump_state(json_mode=json_mode),
            "demonstrations": {"place": self._source.place, **settings},
        }

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False, key: str = "") -> None:
        """Take a state back; the source is opened anew, unless one was given."""
        self.program.load_state(state["program"], allow_unsafe_lm_state=allow_unsafe_lm_state)
        settings = dict(state["demonstrations"])
        place = settings.pop("place")
        self.k, self.input_key, self.output_key = (settings[name] for name in ("k", "input_key", "output_key"))
        if self._source is None:
            self._source = open_source(place, key=key)

    def _wanting(self, program: Any) -> list[Any]:
        return [
            p
            for p in program.predictors()
            if self.input_key in p.signature.input_fields and self.output_key in p.signature.output_fields
        ]

    def _example(self, d: Demonstration) -> Any:
        fields = {**d.metadata, self.input_key: d.input, self.output_key: d.output}
        return dspy.Example(**fields).with_inputs(self.input_key)

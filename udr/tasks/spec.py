"""What a task is: its words, its options, its metric and where its data come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from udr.config import StrictConfig
from udr.errors import DataError
from udr.types import LARGEST

__all__ = ["Kind", "Metric", "Normalisation", "Source", "TaskSpec", "Template"]

Kind = Literal["classification", "multichoice", "generation"]
Metric = Literal[
    "accuracy", "macro_f1", "exact_match", "lf_em", "rouge_l", "bleu", "bleu_1", "bleu_3", "bleu_4", "sari"
]
Split = Literal["train", "test"]
Normalisation = Literal["sum", "mean", "pmi"]


class Template(StrictConfig):
    """How input and answer become text.

    A demonstration reads `input_prefix + x + separator + answer % y`, demonstrations and the query are put together
    by `joiner`, and the query ends where the answer would begin (Li et al. 2023, arXiv 2305.04320, section 3).
    """

    input_prefix: str = ""
    separator: str = "\t"
    answer: str = "%s"
    joiner: str = "\n"

    @model_validator(mode="after")
    def _answer_has_one_place(self) -> Template:
        if self.answer.count("%s") != 1:
            raise ValueError(f"answer {self.answer!r} must hold exactly one %s")
        if not self.joiner:
            raise ValueError("joiner must not be empty")
        return self

    @property
    def answer_prefix(self) -> str:
        return self.answer.split("%s")[0]


class Source(StrictConfig):
    """Where the rows come from: a hub data set with a pinned revision, or a BIG-bench task folder."""

    hub: str = ""  # data set name for `datasets.load_dataset`
    revision: str = "main"
    config: str = ""
    splits: dict[Split, str] = Field(default={"train": "train", "test": "test"})  # ours -> theirs
    columns: dict[str, str] = Field(default_factory=dict)  # input, output, … -> theirs or a {template}
    bigbench: str = ""  # folder below bigbench/benchmark_tasks


NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"  # of a task, for files go by it


class TaskSpec(StrictConfig):
    """One task, as its YAML file states it."""

    name: str = Field(pattern=f"^{NAME}$")
    family: str
    kind: Kind
    metric: Metric
    instruction: str = ""
    template: Template = Template()
    verbaliser: dict[str, str] = Field(default_factory=dict)  # label in the data -> word the LM reads and writes
    normalisation: Normalisation = "mean"
    max_new_tokens: int = Field(default=64, ge=1, le=LARGEST)
    source: Source = Source()
    # queries that feedback is asked for, at most; 0 = as many as the run takes
    train_cap: int = Field(default=0, ge=0, le=LARGEST)

    @field_validator("verbaliser", mode="before")
    @classmethod
    def _labels_and_words_are_texts(cls, given: object) -> object:
        """YAML reads 0 as a number and no as false; the one is meant, the other cannot be told from false."""
        if not isinstance(given, dict):
            return given
        if any(isinstance(part, bool) for pair in given.items() for part in pair):
            raise ValueError("YAML takes yes, no, on, off, true and false for truth values; put them in quotes")
        return {_as_text(label): _as_text(word) for label, word in given.items()}

    @model_validator(mode="after")
    def _words_are_unicode(self) -> TaskSpec:
        words = (self.instruction, *self.template.model_dump().values(), *self.verbaliser, *self.verbaliser.values())
        try:
            "".join(words).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a surrogate pair, which is no Unicode text") from None
        return self

    @model_validator(mode="after")
    def _kind_fits_options(self) -> TaskSpec:
        if self.kind == "classification" and len(self.verbaliser) < 2:
            raise ValueError("a classification task needs a verbaliser with at least two labels")
        if self.kind != "classification" and self.verbaliser:
            raise ValueError(f"a {self.kind} task takes no verbaliser")
        if len(set(self.verbaliser.values())) != len(self.verbaliser):
            raise ValueError("two labels of the verbaliser share one word")
        return self

    @property
    def retrieval_instruction(self) -> str:
        """What tells the encoder which task it serves; a task without an instruction goes by its name."""
        return self.instruction or self.name.replace("_", " ")

    def verbalise(self, output: str) -> str:
        """The word the LM writes for a gold output.

        Raises:
            DataError: the output is no label of the verbaliser.
        """
        if self.kind != "classification":
            return output
        if output not in self.verbaliser:
            raise DataError(
                f"task {self.name}: label {output!r} is not in the verbaliser ({', '.join(self.verbaliser)})"
            )
        return self.verbaliser[output]

    def options(self, choices: tuple[str, ...]) -> tuple[str, ...]:
        """The answers the LM chooses among; empty for generation."""
        if self.kind == "classification":
            return tuple(self.verbaliser.values())
        return choices if self.kind == "multichoice" else ()


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value

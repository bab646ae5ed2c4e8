"""Our demonstrations in any task of lm-evaluation-harness, so that anyone can measure them on tasks of their own.

::

    task = get_task_dict(["arc_easy"])["arc_easy"]
    demonstrate(task, lambda pool, spec: LocalSource(Retriever(spec, pool, BM25Ranker(pool))))
    simple_evaluate("hf", model_args="pretrained=…", tasks=[task], num_fewshot=4)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

from udr.errors import DataError
from udr.integrations.sources import Source
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

__all__ = ["RetrievedSampler", "demonstrate"]

SourceOf = Callable[[Sequence[Demonstration], TaskSpec], Source]


class RetrievedSampler(ContextSampler):  # type: ignore[misc]
    """Samples the few-shot documents that suit the document under evaluation, best last.

    The harness does not tell its samplers that document; `demonstrate` has the task tell it here.

    Args:
        task: a ConfigurableTask; its few-shot documents are the pool.
        source_of: makes what chooses among them.
    """

    def __init__(self, task: Any, source_of: SourceOf) -> None:
        super().__init__(list(task.fewshot_docs()))
        self._text = task.doc_to_text
        pool = [
            Demonstration(str(i), _as_text(task.doc_to_text(doc)), _as_text(task.doc_to_target(doc)))
            for i, doc in enumerate(self.df)
        ]
        if not pool:
            raise DataError("this task has no few-shot documents, so there is nothing to choose from")
        name = "".join(c if c.isalnum() or c in "_.-" else "-" for c in str(task.config.task or "task"))
        spec = TaskSpec(name=name.lstrip("_.-") or "task", family="custom", kind="generation", metric="exact_match")
        self._source = source_of(pool, spec)
        self.document: Any = None  # under evaluation

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> list[Any]:
        """The `n` documents that suit the one under evaluation; itself and equal ones are left out."""
        if n == 0:
            return []
        asked = self.document if self.document is not None else eval_doc
        if asked is None:
            raise DataError("the document under evaluation is not known; put the sampler in place by demonstrate()")
        (found,) = self._source.choose([_as_text(self._text(asked))], n + 1)
        documents = [self.df[int(d.id)] for d in found]
        return [doc for doc in documents if doc != asked][:n][::-1]


def demonstrate(task: Any, source_of: SourceOf) -> RetrievedSampler:
    """Have a task of the harness use retrieved demonstrations from now on.

    Args:
        task: a ConfigurableTask, as `get_task_dict` gives it.
        source_of: makes what chooses among the task's few-shot documents, given as demonstrations whose ids are their
            numbers, and a task description.

    Raises:
        DataError: it has no few-shot documents.
    """
    sampler = RetrievedSampler(task, source_of)
    plainly = task.fewshot_context

    def fewshot_context(doc: Any, *args: Any, **kwargs: Any) -> Any:
        sampler.document = doc
        try:
            return plainly(doc, *args, **kwargs)
        finally:
            sampler.document = None

    task.sampler = sampler
    task.fewshot_context = fewshot_context
    return sampler


def _as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

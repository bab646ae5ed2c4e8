"""Demonstrations in the tools that people have: LangChain, DSPy and lm-evaluation-harness themselves."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.settings import Settings
from tests.serving.tools import served
from udr.client import Client
from udr.errors import ConfigError
from udr.fakes import FakeEncoder
from udr.integrations.sources import LocalSource, PoolSource, Source, open_source
from udr.retriever import BM25Ranker, Retriever, save_task
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

pytest.importorskip("langchain_core")
pytest.importorskip("dspy")
pytest.importorskip("lm_eval")

TICKETS = [
    Demonstration("t1", "the invoice is wrong", "billing", metadata={"lang": "en"}),
    Demonstration("t2", "the printer is on fire", "printer", metadata={"lang": "en"}),
    Demonstration("t3", "my password is lost", "login", metadata={"lang": "en"}),
    Demonstration("t4", "der printer brennt", "printer", metadata={"lang": "de"}),
]
SPEC = TaskSpec(name="tickets", family="custom", kind="generation", metric="exact_match")
ASKED = "is the printer on fire again"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(database=f"sqlite:///{tmp_path_factory.mktemp('i')}/u.sqlite", encoder="fake")
    with served(settings) as url, Client(url) as client:
        client.create_pool("tickets")
        client.add("tickets", TICKETS)
        yield url


@pytest.fixture(params=["local", "pool"])
def source(request: pytest.FixtureRequest) -> Source:
    if request.param == "pool":
        return PoolSource(request.getfixturevalue("url"), "tickets", retriever="bm25")
    return LocalSource(Retriever(SPEC, TICKETS, BM25Ranker(TICKETS)))


# -- sources


def test_a_source_is_opened_again_from_its_place(url: str) -> None:
    first = PoolSource(url, "tickets", key="secret", where={"lang": "de"})
    assert "secret" not in json.dumps(first.place)
    again = open_source(first.place)
    assert [d.id for d in again.choose([ASKED], 3)[0]] == ["t4"]
    with pytest.raises(ConfigError, match="a url and a pool"):
        open_source({"url": url})


def test_a_retriever_folder_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_task(tmp_path, SPEC, TICKETS, FakeEncoder())
    monkeypatch.setattr("udr.encoder.load_encoder", lambda path: FakeEncoder())
    place = {"retriever": str(tmp_path), "task": "tickets", "selection": "mmr"}
    opened = open_source(place)
    assert opened.place == place
    assert opened.choose([ASKED], 1)[0][0].output == "printer"


def test_a_row_of_the_pool_is_not_its_own_demonstration(source: Source, url: str) -> None:
    asked = TICKETS[1].input
    (found,) = source.choose([asked], 4)
    assert found
    assert "t2" not in [d.id for d in found]
    if isinstance(source, PoolSource):
        assert [d.id for d in PoolSource(url, "tickets", without_copies=False).choose([asked], 1)[0]] == ["t2"]
        assert open_source({**source.place, "without_copies": False}).choose([asked], 1)[0][0].id == "t2"


# -- LangChain


def test_a_langchain_prompt_takes_its_examples_from_us(source: Source) -> None:
    from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate

    from udr.integrations.langchain import UDRExampleSelector

    prompt = FewShotPromptTemplate(
        example_selector=UDRExampleSelector(source, k=2, input_key="ticket", output_key="team"),
        example_prompt=PromptTemplate.from_template("{ticket} -> {team} ({lang})"),
        suffix="{ticket} ->",
        input_variables=["ticket"],
        example_separator="\n",
    )
    lines = prompt.format(ticket=ASKED).splitlines()
    assert lines[1:] == ["the printer is on fire -> printer (en)", f"{ASKED} ->"]
    assert asyncio.run(prompt.aformat(ticket=ASKED)).splitlines() == lines


def test_a_langchain_selector_takes_examples_where_it_can(url: str, source: Source) -> None:
    from udr.integrations.langchain import UDRExampleSelector

    selector = UDRExampleSelector({"url": url, "pool": "tickets", "retriever": "bm25"}, k=1, best_last=False)
    key = selector.add_example({"input": "no toner in sight", "output": "printer", "lang": "en"})
    assert selector.select_examples({"input": "toner"}) == [
        {"input": "no toner in sight", "output": "printer", "lang": "en"}
    ]
    with Client(url) as client:
        client.delete("tickets", key)
    with pytest.raises(ConfigError, match="lacks output"):
        selector.add_example({"input": "a"})
    with pytest.raises(ConfigError, match="set input_key"):
        selector.select_examples({"question": "a"})
    local = UDRExampleSelector(LocalSource(Retriever(SPEC, TICKETS, BM25Ranker(TICKETS))))
    with pytest.raises(ConfigError, match="only a pool"):
        local.add_example({"input": "a", "output": "b"})


# -- DSPy


def answered(program: Any, **inputs: str) -> str:
    """What the program sends to its LM."""
    import dspy
    from dspy.utils import DummyLM

    lm = DummyLM([{"team": "printer", "reasoning": "smoke"}] * 4)
    with dspy.context(lm=lm):
        assert program(**inputs).team == "printer"
    return "\n".join(str(message["content"]) for message in lm.history[-1]["messages"])


def test_a_dspy_program_is_compiled_saved_and_loaded(url: str, tmp_path: Path) -> None:
    import dspy

    from udr.integrations.dspy import Demonstrated, UDRFewShot

    place = {"url": url, "pool": "tickets", "retriever": "bm25"}
    plain = dspy.ChainOfThought("ticket -> team")
    compiled = UDRFewShot(place, k=2, input_key="ticket", output_key="team").compile(plain)
    sent = answered(compiled, ticket=ASKED)
    assert sent.index("the invoice is wrong") < sent.index("the printer is on fire") < sent.index(ASKED)
    assert "my password is lost" not in sent
    assert "the printer is on fire" not in answered(plain, ticket=ASKED)  # the student is as it was
    compiled.save(tmp_path / "program.json")
    loaded = Demonstrated(dspy.ChainOfThought("ticket -> team"), input_key="ticket", output_key="team")
    with pytest.raises(ConfigError, match="no source"):
        loaded(ticket=ASKED)
    loaded.load(tmp_path / "program.json")
    assert answered(loaded, ticket=ASKED) == sent
    assert "my password is lost" in answered(loaded, ticket="a lost password")  # each call is given its own


def test_a_dspy_program_without_the_fields_is_refused(source: Source) -> None:
    import dspy

    from udr.integrations.dspy import UDRFewShot

    with pytest.raises(ConfigError, match="'question' and 'answer'"):
        UDRFewShot(source).compile(dspy.Predict("ticket -> team"))
    compiled = UDRFewShot(source, input_key="ticket", output_key="team").compile(dspy.Predict("ticket -> team"))
    with pytest.raises(ConfigError, match="set input_key"):
        compiled(text="a")
    if isinstance(source, LocalSource):
        with pytest.raises(ConfigError, match="came from no folder"):
            compiled.dump_state()


# -- lm-evaluation-harness


def harness_task(folder: Path, split: str = "train") -> Any:
    from lm_eval.api.task import ConfigurableTask

    for name, rows in {"train": TICKETS, "test": [Demonstration("q", ASKED, "printer"), TICKETS[3]]}.items():
        lines = [json.dumps({"text": d.input, "team": d.output}) for d in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return ConfigurableTask(
        config={
            "task": "my tickets",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": split,
            "output_type": "multiple_choice",
            "doc_to_text": "Ticket: {{text}}\nTeam:",
            "doc_to_target": "{{team}}",
            "doc_to_choice": ["billing", "printer", "login"],
            "num_fewshot": 2,
            "metric_list": [{"metric": "acc"}],
        }
    )


def over_words(pool: Sequence[Demonstration], spec: TaskSpec) -> Source:
    return LocalSource(Retriever(spec, pool, BM25Ranker(pool)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_harness_evaluates_a_task_with_retrieved_demonstrations(tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM

    from udr.integrations.lm_eval import demonstrate

    class Nearest(LM):  # type: ignore[misc]
        """Answers what the last demonstration did; keeps what it was asked."""

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            self.asked += [r.args[0] for r in requests]
            last = [r.args[0].rpartition("\n\n")[0].rpartition("Team: ")[2] for r in requests]
            return [(0.0 if r.args[1].strip() == own else -1.0, True) for r, own in zip(requests, last, strict=True)]

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any) -> Any:
            raise NotImplementedError

    task = harness_task(tmp_path)
    demonstrate(task, over_words)
    lm = Nearest()
    found = simple_evaluate(lm, tasks=[task], bootstrap_iters=0)
    (scores,) = found["results"].values()
    assert scores["acc,none"] == 1.0
    contexts = sorted(set(lm.asked))
    assert len(contexts) == 2
    assert all(c.count("Ticket:") == 3 for c in contexts)
    own = next(c for c in contexts if c.endswith("Ticket: der printer brennt\nTeam:"))
    assert own.count("der printer brennt") == 1  # a document is never its own demonstration


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_sampler_that_does_not_know_the_document_says_so(tmp_path: Path) -> None:
    from udr.errors import DataError
    from udr.integrations.lm_eval import RetrievedSampler

    sampler = RetrievedSampler(harness_task(tmp_path), over_words)
    assert sampler.sample(0) == []
    assert [d["team"] for d in sampler.sample(1, {"text": ASKED, "team": "printer"})] == ["printer"]
    with pytest.raises(DataError, match="demonstrate"):
        sampler.sample(2)


# -- the README's examples, as printed


def readme_example(words: str, **changes: str) -> str:
    readme = (Path(__file__).parents[2] / "serving" / "README.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if words in b]
    for before, after in changes.values():
        assert before in block
        block = block.replace(before, after)
    return block


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines, without those that the service in this process logs."""
    return [line for line in capsys.readouterr().out.splitlines() if "[info" not in line]


@pytest.fixture
def questions(url: str) -> Iterator[str]:
    with Client(url) as client:
        client.create_pool("questions")
        client.add("questions", [Demonstration("q1", "Question: Where is Rome? (Answer: Italy).", "Location.")])
        yield url
        client.delete_pool("questions")


def test_the_readmes_langchain_example_runs(questions: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(readme_example("langchain", at=("http://127.0.0.1:8000", questions)), {})
    lines = printed(capsys)
    assert lines[:2] == ["Question: Where is Rome? (Answer: Italy).", "Location."]
    assert lines[-1] == "Question: Where is Kyoto? (Answer: Japan)."


def test_the_readmes_dspy_example_runs(
    questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dspy
    from dspy.utils import DummyLM

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with dspy.context(lm=DummyLM([{"kind": "Location."}] * 2)):
        exec(readme_example("dspy", at=("http://127.0.0.1:8000", questions)), names)
        assert printed(capsys) == ["Location."]
        assert names["again"](question="Where is Oslo?").kind == "Location."


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_readmes_harness_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = harness_task(tmp_path).dump_config()
    kept = ("dataset_path", "dataset_kwargs", "test_split", "fewshot_split", "output_type", "doc_to_text")
    kept += ("doc_to_target", "doc_to_choice", "num_fewshot", "metric_list")
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks" / "my_task.yaml").write_text(json.dumps({"task": "my_task"} | {k: config[k] for k in kept}))
    monkeypatch.chdir(tmp_path)
    model = ('"hf", model_args="pretrained=models/gemma-3-270m"', '"dummy"')
    exec(readme_example("lm_eval", lm=model), {})
    assert "my_task" in "".join(printed(capsys))

"""The LM's answers to queries held back from training: how much the untrained encoder is worth on a known task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from workbench import Bench, Outcome, lay_out

from training.evaluate import evaluate, index
from training.mixing import mix, mixed_share
from training.run import held_and_asked, mine_and_train, open_run
from udr.candidates import read_candidates
from udr.encoder import load_encoder
from udr.errors import ArtifactError
from udr.evaluation import read_answers
from udr.fakes import FakeLM
from udr.mining import drop_long
from udr.mixture import MixedEncoder
from udr.retriever import Retriever, build_dense_ranker, load_retriever, saved_weights


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Bench:
    """A finished run that held queries back."""
    made = lay_out(tmp_path_factory.mktemp("mixed"), encoder_folder)
    made.config.write_text(
        made.config.read_text().replace("mining:", "mining:\n  held: 10\n  accumulate: true\n  fresh_queries: true")
    )
    run = open_run(made.settings())
    mine_and_train(run)
    mix(run)
    index(run)
    evaluate(run)
    return made


@pytest.fixture
def copy(mixed: Bench, tmp_path: Path) -> Bench:
    """The same of the test's own, to be changed."""
    made = Bench(tmp_path / "copy")
    shutil.copytree(mixed.folder, made.folder)
    for path in (made.config, made.out / "config.yaml"):
        path.write_text(path.read_text().replace(str(mixed.folder), str(made.folder)))
    return made


def give(bench: Bench, task: str, share: float, weights: list[float]) -> None:
    """Let a share have been chosen for a task."""
    path = bench.out / "mixture" / f"{task}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "share": share, "weights": weights}))


def test_held_back_queries_are_a_tenth_at_most_and_no_round_asks_about_them(mixed: Bench) -> None:
    run = open_run(mixed.settings())
    for name, data in run.tasks.items():
        fitting = drop_long(data.spec, data.train, run.lm, run.config.mining.max_tokens)
        held, asked = held_and_asked(run, data.spec, fitting)
        assert len(held) == len(fitting) // 10 == 4
        assert {d.id for d in (*held, *asked)} == {d.id for d in fitting}
        for number in (0, 1):
            queries = {one.query_id for one in read_candidates(mixed.out / f"round-{number}" / f"{name}.scored.jsonl")}
            assert queries <= {d.id for d in asked}
            assert not queries & {d.id for d in held}


def test_without_held_back_queries_the_trained_encoder_is_alone(finished: Bench) -> None:
    run = open_run(finished.settings())
    mix(run)
    assert not (finished.out / "mixture").exists()
    assert mixed_share(run, "mood") == 0
    assert saved_weights(finished.retriever, "mood") is None


def test_what_a_share_is_worth_is_how_likely_the_own_output_is_after_its_prompts(mixed: Bench) -> None:
    run = open_run(mixed.settings())
    lm, settings = FakeLM(), run.config.evaluation
    trained, untrained = load_encoder(mixed.out / "round-1" / "encoder"), run.untrained_encoder()
    for name, data in run.tasks.items():
        found = json.loads((mixed.out / "mixture" / f"{name}.json").read_text())
        held, _ = held_and_asked(run, data.spec, drop_long(data.spec, data.train, lm, run.config.mining.max_tokens))
        assert found["queries"] == len(held)
        for share, encoder in (("0.0", trained), ("1.0", MixedEncoder(trained, untrained, 0, 1))):
            retriever = Retriever(data.spec, data.train, build_dense_ranker(data.spec, data.train, encoder))
            likelihoods = []
            for query in held:
                (hits,) = retriever.retrieve([query.query], 2 * settings.k)
                options = data.spec.options(query.choices)
                answers = options or [data.spec.verbalise(query.output)]
                reserve = max(len(lm.encode(o)) for o in options) if options else data.spec.max_new_tokens
                text = retriever.prompt(query.query, hits, lm, settings.budget, k=settings.k, reserve=reserve).text
                said = lm.loglikelihood([text] * len(answers), list(answers))
                if options:
                    p = np.exp(said.nats.astype(float))
                    likelihoods.append(p[list(options).index(data.spec.verbalise(query.output))] / p.sum())
                else:
                    likelihoods.append(np.exp(said.nats[0] / said.tokens[0]))
            assert found["worth"][share] == pytest.approx(np.mean(likelihoods), abs=1e-5)


def test_what_was_chosen_stands_until_the_prompts_change(copy: Bench) -> None:
    path = copy.out / "mixture" / "mood.json"
    written = path.stat().st_mtime_ns
    mix(open_run(copy.settings()))
    assert path.stat().st_mtime_ns == written
    fewer = open_run(copy.settings("evaluation.k=2"))
    with pytest.raises(ArtifactError, match=r"mood.json: not mixed yet; run: udr mix CONFIG"):
        evaluate(fewer)
    mix(fewer)
    assert path.stat().st_mtime_ns > written
    assert json.loads(path.read_text())["of"]["k"] == 2


def test_index_evaluation_and_saved_retriever_rank_by_what_was_chosen(copy: Bench) -> None:
    give(copy, "mood", 0.5, [1.0, 2.0])
    run = open_run(copy.settings("evaluation.methods=[encoder, udr_unmixed, udr]"))
    index(run)
    evaluate(run)
    folder = copy.out / "evaluation"
    assert json.loads((folder / "table.json").read_text())["facts"]["untrained_share"]["mood"] == 0.5
    data = run.tasks["mood"]
    trained = load_encoder(copy.out / "round-1" / "encoder")
    both = MixedEncoder(trained, run.untrained_encoder(), 1.0, 2.0)
    opened = load_retriever(copy.retriever, "mood", trained)
    test = {d.id: d for d in data.test}
    for method, retriever in (
        ("udr", opened),
        ("udr", Retriever(data.spec, data.train, build_dense_ranker(data.spec, data.train, both))),
        ("udr_unmixed", Retriever(data.spec, data.train, build_dense_ranker(data.spec, data.train, trained))),
    ):
        answers = read_answers(folder / method / "mood.jsonl")
        found = retriever.retrieve([test[a.query_id].query for a in answers], 4)
        assert [tuple(f.demonstration.id for f in hits[::-1]) for hits in found] == [a.demonstrations for a in answers]
    udr, alone = (read_answers(folder / method / "mood.jsonl") for method in ("udr", "udr_unmixed"))
    assert [a.demonstrations for a in udr] != [a.demonstrations for a in alone]
    give(copy, "mood", 0.0, [1.0, 0.0])  # and back
    index(run)
    assert saved_weights(copy.retriever, "mood") is None
    evaluate(run)
    assert read_answers(folder / "udr" / "mood.jsonl") == alone


def test_the_stage_is_a_command(copy: Bench, udr: Callable[..., Outcome]) -> None:
    shutil.rmtree(copy.out / "mixture")
    assert udr("index", copy.config).complaint.endswith("not mixed yet; run: udr mix CONFIG")
    assert udr("mix", copy.config).code == 0
    assert udr("index", copy.config).code == 0
    assert {p.name for p in (copy.out / "mixture").iterdir()} == {"mood.json", "paint.json"}


@pytest.mark.parametrize("content", ["{}", '{"weights": [1]}', '{"weights": ["a", "b"]}'])
def test_damaged_weights_of_a_saved_retriever_are_named(copy: Bench, content: str) -> None:
    (copy.retriever / "tasks" / "mood" / "mixture.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"mixture.json: damaged \(no two weights\); run: udr index CONFIG"):
        load_retriever(copy.retriever, "mood")

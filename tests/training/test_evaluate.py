"""The evaluation stage: every method's answers, which of them are kept, tasks never trained on, and the table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from workbench import Bench, Outcome, digest, mood_rows, paint_rows, write_table

from training.evaluate import evaluate, evaluated_tasks, evaluation_queries, index, table_path
from training.run import open_run
from training.settings import RunConfig
from udr.config import load_config
from udr.data import open_task
from udr.encoder import load_encoder
from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from udr.evaluation import read_answers
from udr.fakes import FakeLM
from udr.mixture import mix
from udr.retriever import Retriever, load_retriever
from udr.tasks.spec import TaskSpec
from udr.types import LogLikelihoods

METHODS = ("zero_shot", "random", "bm25", "encoder", "epr", "udr")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that the LM answers from now on."""
    prompts: list[str] = []
    score, generate = FakeLM.loglikelihood, FakeLM.generate

    def spy_score(self: FakeLM, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        prompts.extend(contexts[::2])  # each query of the task `mood` has two options
        return score(self, contexts, continuations)

    def spy_generate(self: FakeLM, texts: Sequence[str], max_new_tokens: int) -> list[str]:
        prompts.extend(texts)
        return generate(self, texts, max_new_tokens)

    monkeypatch.setattr(FakeLM, "loglikelihood", spy_score)
    monkeypatch.setattr(FakeLM, "generate", spy_generate)
    return prompts


def test_every_method_answers_the_same_queries_within_k_and_budget(finished: Bench) -> None:
    pools = {task: {d.id: d for d in open_task(task, finished.data).train} for task in ("mood", "paint")}
    for task, pool in pools.items():
        found = {m: read_answers(finished.out / "evaluation" / m / f"{task}.jsonl") for m in METHODS}
        ids = [a.query_id for a in found["udr"]]
        assert len(ids) == len(set(ids)) == 8
        for method, answers in found.items():
            assert [a.query_id for a in answers] == ids
            for answer in answers:
                assert len(answer.demonstrations) == (0 if method == "zero_shot" else 4)
                assert len(set(answer.demonstrations)) == len(answer.demonstrations)
                assert set(answer.demonstrations) <= pool.keys()
                assert answer.tokens <= 96
    assert (finished.out / "evaluation" / "udr" / "mood.jsonl").read_text() != (
        finished.out / "evaluation" / "encoder" / "mood.jsonl"
    ).read_text()


def test_the_table_is_the_metric_over_the_answers_and_stands_in_three_files(finished: Bench) -> None:
    folder = finished.out / "evaluation"
    table = json.loads((folder / "table.json").read_text())
    assert table["methods"] == list(METHODS)
    for task in ("mood", "paint"):
        for method in METHODS:
            answers = read_answers(folder / method / f"{task}.jsonl")
            own = 100 * sum(a.prediction in a.references for a in answers) / len(answers)
            assert table["scores"][method][task] == pytest.approx(own)
            low, high = table["intervals"][method][task]
            assert 0 <= low <= table["scores"][method][task] <= high <= 100
    for method in METHODS:
        own = table["scores"][method]
        assert own["average"] == pytest.approx((own["mood"] + own["paint"]) / 2)
    assert table["facts"]["models"]["lm"] == "fake-lm-1"
    assert table["facts"]["budget"] == 96
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] == "| | zero_shot | random | bm25 | encoder | epr | udr | p |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:4]] == ["mood", "paint"]
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_of_many_tasks_has_a_name_that_a_file_may_have(finished: Bench) -> None:
    run = open_run(finished.settings())
    names = [f"問題-{i}" for i in range(40)]
    path = table_path(run, names)
    assert len(path.name.encode()) < 200
    assert path.name.startswith("table-40-tasks-")
    assert path != table_path(run, [*names[1:], "another"])
    assert table_path(run, list(reversed(list(run.tasks)))).name == "table.json"


def test_answers_that_stand_are_not_asked_again(copy: Bench, asked: list[str]) -> None:
    table = evaluate(open_run(copy.settings()))
    assert asked == []
    assert table.as_json()["scores"] == json.loads((copy.out / "evaluation" / "table.json").read_text())["scores"]


def test_one_missing_answer_file_is_asked_for_alone(copy: Bench, asked: list[str]) -> None:
    path = copy.out / "evaluation" / "bm25" / "paint.jsonl"
    before = path.read_bytes()
    path.unlink()
    evaluate(open_run(copy.settings()))
    assert len(asked) == 8
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("evaluation.budget=48", 96),  # 6 methods, 2 tasks, 8 queries
        ("evaluation.k=2", 96),
        ("evaluation.queries=4", 48),
        ("evaluation.order=descending", 96),
        ("evaluation.draws=200", 0),
        ("evaluation.methods=[bm25, random]", 0),
    ],
)
def test_what_changes_the_prompts_is_asked_again_and_nothing_else(
    copy: Bench, asked: list[str], change: str, again: int
) -> None:
    evaluate(open_run(copy.settings(change)))
    assert len(asked) == again


def test_a_smaller_budget_gives_shorter_prompts_with_fewer_demonstrations(copy: Bench) -> None:
    evaluate(open_run(copy.settings("evaluation.budget=40", "evaluation.methods=[bm25]")))
    for task in ("mood", "paint"):
        answers = read_answers(copy.out / "evaluation" / "bm25" / f"{task}.jsonl")
        assert all(a.tokens <= 40 for a in answers)
        assert all(len(a.demonstrations) < 4 for a in answers)
        assert any(a.demonstrations for a in answers)


def test_a_table_never_seen_is_evaluated_with_the_methods_that_need_no_training_on_it(
    copy: Bench, tmp_path: Path, udr: Callable[..., Outcome]
) -> None:
    table = write_table(tmp_path / "elsewhere.jsonl", mood_rows(40, seed=7))
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text("".join(json.dumps({k: r[k] for k in ("input", "output")}) + "\n" for r in rows))
    methods = "evaluation.methods=[zero_shot, random, bm25, encoder, udr_unmixed, udr]"
    own = (copy.out / "evaluation" / "table.json").read_bytes()
    done = udr("evaluate", copy.config, f"evaluation.tasks=[{table}]", methods, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (copy.out / "evaluation" / "table.json").read_bytes() == own  # the run's own table stays
    beside = json.loads((copy.out / "evaluation" / "table-elsewhere.json").read_text())
    assert beside["scores"] == found["scores"]
    assert (copy.out / "evaluation" / "table-elsewhere.md").read_text().startswith("| | zero_shot |")
    assert found["tasks"] == ["elsewhere"]
    assert found["methods"] == ["zero_shot", "random", "bm25", "encoder", "udr_unmixed", "udr"]
    for method in found["methods"]:
        answers = read_answers(copy.out / "evaluation" / method / "elsewhere.jsonl")
        assert len(answers) == 8
        assert {a.prediction for a in answers} <= {"up", "down"}
    assert found["scores"]["bm25"]["elsewhere"] > found["scores"]["zero_shot"]["elsewhere"]


def test_any_sentence_encoder_can_be_compared_with(copy: Bench, cls_bert_folder: Path, asked: list[str]) -> None:
    own = load_config(RunConfig, copy.config).encoder.name
    settings = "evaluation.methods=[encoder, twin, other]", "evaluation.encoders={{twin: {0}, other: {1}}}"
    run = open_run(copy.settings(settings[0], settings[1].format(own, own)))
    evaluate(run)
    folder = run.out / "evaluation"
    for task in run.tasks:
        assert read_answers(folder / "twin" / f"{task}.jsonl") == read_answers(folder / "encoder" / f"{task}.jsonl")
    asked.clear()
    evaluate(run)
    assert asked == []
    evaluate(open_run(copy.settings(settings[0], settings[1].format(own, cls_bert_folder))))
    assert asked  # of the one that became another
    with pytest.raises(ConfigError, match=r"evaluation\.encoders\.other: missing: cannot be loaded \(no such folder"):
        evaluated_tasks(open_run(copy.settings(settings[0], settings[1].format(own, "missing"))))


def test_the_untrained_encoder_has_a_say_on_a_task_never_trained_on_and_on_no_other(
    copy: Bench, tmp_path: Path, asked: list[str]
) -> None:
    table = write_table(tmp_path / "elsewhere.jsonl", mood_rows(60, seed=7), test=8)
    run = open_run(copy.settings(f"evaluation.tasks=[mood, {table}]", "evaluation.methods=[encoder, udr_unmixed, udr]"))
    evaluate(run)
    folder = run.out / "evaluation"
    data = open_task(str(table))
    mixture = mix(data.spec, data.train, load_encoder(run.out / "round-1" / "encoder"), run.untrained_encoder())
    retriever = Retriever(data.spec, data.train, mixture.ranker)
    wanted = retriever.retrieve([d.query for d in evaluation_queries(data, 8, 0)], 4)
    answers = read_answers(folder / "udr" / "elsewhere.jsonl")
    assert [set(a.demonstrations) for a in answers] == [{f.demonstration.id for f in own} for own in wanted]
    assert json.loads((folder / "udr" / "elsewhere.mixture.json").read_text()) == mixture.as_json()
    facts = json.loads((folder / "table-mood-elsewhere.json").read_text())["facts"]
    assert facts["untrained_share"] == {"elsewhere": mixture.share}
    assert read_answers(folder / "udr_unmixed" / "mood.jsonl") == read_answers(folder / "udr" / "mood.jsonl")
    assert not (folder / "udr" / "mood.mixture.json").exists()
    asked.clear()
    evaluate(run)
    assert asked == []
    (folder / "udr" / "elsewhere.mixture.json").unlink()  # what the table tells is found again, with its answers
    evaluate(run)
    assert json.loads((folder / "udr" / "elsewhere.mixture.json").read_text()) == mixture.as_json()
    assert len(asked) == 8


def test_epr_on_a_task_it_was_not_trained_for_is_refused_before_anything_is_asked(
    copy: Bench, tmp_path: Path, asked: list[str]
) -> None:
    table = write_table(tmp_path / "elsewhere.jsonl", mood_rows(40, seed=7), test=8)
    with pytest.raises(ConfigError, match=r"evaluation.methods: epr .* elsewhere was not trained on"):
        evaluate(open_run(copy.settings(f"evaluation.tasks=[mood, {table}]")))
    assert asked == []


def test_a_task_without_test_rows_is_refused_by_name(copy: Bench) -> None:
    write_table(copy.data / "mood.jsonl", mood_rows(40))
    with pytest.raises(ConfigError, match="task mood: no rows of split test"):
        evaluate(open_run(copy.settings("evaluation.queries=3")))


def test_more_queries_keep_those_of_fewer(finished: Bench) -> None:
    data = open_task("mood", finished.data)
    few, many = (evaluation_queries(data, count, seed=0) for count in (4, 9))
    assert many[:4] == few
    assert len(many) == 9


def test_the_saved_retriever_finds_what_the_evaluation_found(finished: Bench) -> None:
    settings = load_config(TaskSpec, finished.retriever / "tasks" / "mood" / "task.yaml")
    assert settings == open_task("mood", finished.data).spec
    for task in ("mood", "paint"):
        retriever = load_retriever(finished.retriever, task)
        test = {d.id: d for d in open_task(task, finished.data).test}
        answers = read_answers(finished.out / "evaluation" / "udr" / f"{task}.jsonl")
        found = retriever.retrieve([test[a.query_id].query for a in answers], 4)
        own = [tuple(hit.demonstration.id for hit in hits[::-1]) for hits in found]  # prompts end with the best one
        assert own == [a.demonstrations for a in answers]


@pytest.mark.parametrize("context_length", range(54, 62))
def test_a_budget_as_large_as_the_lms_context_leaves_room_for_every_answer(
    copy: Bench, monkeypatch: pytest.MonkeyPatch, context_length: int
) -> None:
    monkeypatch.setattr("udr.fakes.FakeLM", partial(FakeLM, context_length))
    most = ("evaluation.k=9", "evaluation.k_generation=9")
    words = (f"evaluation.budget={context_length}", "mining.max_tokens=50", *most)
    (copy.out / "config.yaml").unlink()
    evaluate(open_run(copy.settings("evaluation.methods=[bm25]", *words)))
    for task in ("mood", "paint"):
        answers = read_answers(copy.out / "evaluation" / "bm25" / f"{task}.jsonl")
        assert all(0 < len(a.demonstrations) < 9 for a in answers)
        assert all(a.tokens < context_length for a in answers)


def test_a_query_longer_than_the_lms_context_is_asked_with_its_end_cut_off(
    copy: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udr.fakes.FakeLM", partial(FakeLM, 64))
    for task, rows in (("mood", mood_rows(41)), ("paint", paint_rows(41))):
        rows[-1]["input"] = "filler0 " * 100
        write_table(copy.data / f"{task}.jsonl", rows, test=1)
    (copy.out / "config.yaml").unlink()
    evaluate(open_run(copy.settings("evaluation.methods=[bm25]", "evaluation.budget=60", "mining.max_tokens=50")))
    for task, most in (("mood", 64), ("paint", 64 - 8)):
        (answer,) = read_answers(copy.out / "evaluation" / "bm25" / f"{task}.jsonl")
        assert answer.demonstrations == ()
        assert most - 8 < answer.tokens < most


def test_answers_that_hold_any_character_are_read_again_as_they_were_written(copy: Bench, asked: list[str]) -> None:
    rows = mood_rows(48)  # the pool stays as it was: a changed one is refused
    for row, mark in zip(rows[-8:], ["\u2028", "\u2029", "\x85", "\x0c", "\x1c", "\r", "\v", "é🙂"], strict=True):
        row["input"] += f" {mark} merry"
    write_table(copy.data / "mood.jsonl", rows, test=8)
    words = "evaluation.methods=[random]"
    first = evaluate(open_run(copy.settings(words)))
    asked.clear()
    assert evaluate(open_run(copy.settings(words))) == first
    assert asked == []


def test_a_pool_that_changed_under_an_old_run_is_refused(copy: Bench) -> None:
    rows = mood_rows(48)
    rows[0]["input"] += " indeed"
    write_table(copy.data / "mood.jsonl", rows, test=8)
    with pytest.raises(FingerprintMismatch, match=r"begun with task mood .* give the run another out folder"):
        evaluate(open_run(copy.settings()))


@pytest.mark.parametrize("content", [b"{}\n", b'{"query_id": 1', b"\xff\xfe\n"])
def test_a_damaged_file_of_answers_is_named(copy: Bench, content: bytes) -> None:
    path = copy.out / "evaluation" / "bm25" / "mood.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}:"):
        evaluate(open_run(copy.settings()))


@pytest.mark.parametrize("kept", [0, 7])
def test_a_file_that_lacks_answers_is_named(copy: Bench, asked: list[str], kept: int) -> None:
    path = copy.out / "evaluation" / "udr" / "mood.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:kept]))
    with pytest.raises(ArtifactError, match=rf"^{path}: .*; remove it to ask again"):
        evaluate(open_run(copy.settings()))
    path.unlink()
    evaluate(open_run(copy.settings()))
    assert len(asked) == 8
    assert path.read_text() == whole


def test_a_folder_that_was_only_evaluated_holds_its_lm_fast_too(bench: Bench, lm_folder: Path) -> None:
    words = ("evaluation.methods=[zero_shot, bm25]", "evaluation.queries=2")
    evaluate(open_run(bench.settings(*words)))
    with pytest.raises(FingerprintMismatch, match="begun with lm fake-lm-1"):
        evaluate(open_run(bench.settings(*words, f"lm.name={lm_folder}")))


def test_a_replaced_encoder_is_indexed_and_asked_about_anew(copy: Bench, asked: list[str]) -> None:
    run = open_run(copy.settings())
    index(run)
    evaluate(run)
    assert asked == []
    folder = copy.out / "round-1" / "encoder"
    encoder = load_encoder(folder, "cpu")
    for weights in encoder.parameters():
        weights.data *= 1.5
    shutil.rmtree(folder)
    encoder.save(folder)
    index(run)
    assert load_encoder(copy.retriever / "encoder").fingerprint == load_encoder(folder).fingerprint
    load_retriever(copy.retriever, "mood")  # refuses an index of another encoder
    evaluate(run)
    assert len(asked) == 2 * 8  # udr on both tasks, the baselines not


def test_two_tasks_of_one_name_are_refused(bench: Bench, tmp_path: Path) -> None:
    table = write_table(tmp_path / "mood.jsonl", mood_rows(20, seed=7), test=4)
    with pytest.raises(ConfigError, match="two are named mood"):
        _ = open_run(bench.settings(f"tasks=[mood, {table}]")).tasks
    with pytest.raises(ConfigError, match="two are named mood"):
        evaluate(open_run(bench.settings(f"evaluation.tasks=[mood, {table}]", "evaluation.methods=[bm25]")))


def test_another_table_of_a_training_tasks_name_is_refused_and_the_run_stays_as_it_was(
    copy: Bench, tmp_path: Path, udr: Callable[..., Outcome]
) -> None:
    def files() -> dict[str, str]:
        return {str(p): digest(p) for p in (copy.out / "evaluation").rglob("*") if p.is_file()}

    before = files()
    pool = mood_rows(52)[:40]
    for rows in (mood_rows(52, seed=7), [*pool, *mood_rows(12, seed=7)]):  # another pool; the same one, other test rows
        table = write_table(tmp_path / "mood.jsonl", rows, test=12)
        assert udr("evaluate", copy.config, f"evaluation.tasks=[{table}]").complaint == (
            f"evaluation.tasks: {table} differs from the training task mood but has its name; rename the file"
        )
    assert files() == before


def test_the_path_of_a_training_tasks_own_table_means_that_task(bench: Bench) -> None:
    table = write_table(bench.folder / "own.jsonl", mood_rows(20), test=4)
    run = open_run(bench.settings(f"tasks=[{table}]", f"evaluation.tasks=[{table}]"))
    assert [data.spec.name for data in evaluated_tasks(run)] == ["own"]


def test_what_cannot_be_evaluated_is_told_before_anything_is_mined(
    bench: Bench, tmp_path: Path, udr: Callable[..., Outcome]
) -> None:
    table = write_table(tmp_path / "elsewhere.jsonl", mood_rows(40, seed=7), test=8)
    assert "elsewhere was not trained on" in udr("run", bench.config, f"evaluation.tasks=[{table}]").complaint
    words = (f"evaluation.tasks=[{table}]", "evaluation.methods=[bm25, udr]", "train.multi_task=false")
    assert "udr is trained for one task at a time" in udr("run", bench.config, *words).complaint
    assert "did you mean mood?" in udr("run", bench.config, "evaluation.tasks=[moood]").complaint
    assert "evaluation.methods" in udr("run", bench.config, "evaluation.methods=[]").complaint
    assert not any(bench.out.glob("round-*"))


@pytest.mark.parametrize("selection", ["mmr", "dpp"])
def test_selections_that_need_vectors_leave_lexical_rankings_as_they_are(copy: Bench, selection: str) -> None:
    folder = copy.out / "evaluation"
    before = {m: read_answers(folder / m / "mood.jsonl") for m in ("bm25", "encoder")}
    evaluate(open_run(copy.settings(f"evaluation.selection={selection}")), ("bm25", "encoder"), ("mood",))
    after = {m: read_answers(folder / m / "mood.jsonl") for m in ("bm25", "encoder")}
    assert after["bm25"] == before["bm25"]
    assert after["encoder"] != before["encoder"]

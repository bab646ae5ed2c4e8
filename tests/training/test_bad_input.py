"""What the user got wrong is told in one line, with exit code 2, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from workbench import Bench, Outcome

from training.run import alone_in

Command = Callable[..., Outcome]
INPUT = "filler1 filler2 merry filler3"


def test_the_entry_point_itself_prints_one_line_and_exits_2(bench: Bench) -> None:
    command = [sys.executable, "-m", "training.cli", "run", str(bench.config), "evaluation.budgget=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (f"udr: {bench.config}: evaluation.budgget: no such setting; did you mean budget?\n")


def test_an_unknown_option_exits_2_without_a_traceback(udr: Command) -> None:
    done = udr("tasks", "list", "--nonsense")
    assert done.code == 2
    assert "No such option" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"input": "a", "output": ', "{path}:3: not JSON"),
        ("[1, 2]", "{path}:3: expected an object"),
        ('{"input": "a"}', "{path}:3: no column 'output'; the row has input"),
        ('{"input": " ", "output": "up"}', "{path}:3: input is empty"),
        ('{"input": "a", "output": null}', "{path}:3: output must be text, not NoneType"),
        ('{"input": "a", "output": "up", "choices": ["down", "no"]}', "{path}:3: output 'up' is not among the choices"),
        ('{"id": "t-1", "input": "a", "output": "up"}', "{path}:3: id 't-1' stands already at line 1"),
    ],
)
@pytest.mark.parametrize("command", ["check", "retrieve"])
def test_a_bad_row_is_named_by_file_and_line(
    udr: Command, finished: Bench, tmp_path: Path, command: str, line: str, problem: str
) -> None:
    path = tmp_path / "rows.jsonl"
    good = ['{"id": "t-1", "input": "b", "output": "up"}', '{"input": "c", "output": "down"}']
    path.write_text("\n".join([*good, line]) + "\n")
    words = ("tasks", "check", path)
    if command == "retrieve":
        words = ("retrieve", "--retriever", finished.retriever, "--task", path, INPUT)
    assert udr(*words).complaint.startswith(problem.format(path=path))


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(udr: Command, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"input": "a", "output": "b"}\n{"input": "\xff", "output": "b"}\n')
    assert udr("tasks", "check", path).complaint == f"{path}:2: not UTF-8 at byte 11"


@pytest.mark.parametrize("content", ["", "\n\n", '{"split": "test", "input": "a", "output": "b"}\n'])
def test_an_empty_pool_is_refused(udr: Command, tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    found = udr("tasks", "check", path).complaint
    assert str(path) in found
    assert "no rows" in found or "pool of task rows is empty" in found


def test_tables_that_do_not_exist_or_are_of_no_known_format_are_named(udr: Command, tmp_path: Path) -> None:
    assert udr("tasks", "check", tmp_path / "no.jsonl").complaint == f"{tmp_path}/no.jsonl: no such file"
    assert udr("tasks", "check", tmp_path / "no.yaml").complaint.startswith(f"{tmp_path}/no.yaml: cannot be read")


def test_a_label_outside_the_verbaliser_is_named_by_file_and_line(udr: Command, bench: Bench) -> None:
    path = bench.data / "mood.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace('"output": "up"', '"output": "sideways"')
    path.write_text("\n".join(lines) + "\n")
    assert udr("run", bench.config).complaint == (
        f"{path}:5: label 'sideways' is not in the verbaliser of task mood (up, down)"
    )


@pytest.mark.parametrize("name", ["", ".", "mood/../paint", "mood/"])
def test_a_path_is_no_task_of_a_retriever(udr: Command, finished: Bench, name: str) -> None:
    found = udr("retrieve", "--retriever", finished.retriever, "--task", name, INPUT).complaint
    assert found.startswith(f"unknown task of this retriever {name!r}; ")


def test_an_unknown_task_is_answered_with_near_names(udr: Command, finished: Bench, bench: Bench) -> None:
    assert udr("tasks", "show", "sst22").complaint.startswith("unknown task 'sst22'; did you mean sst2")
    assert udr("run", bench.config, "tasks=[moood, paint]").complaint == "unknown task 'moood'; did you mean mood?"
    words = ("retrieve", "--retriever", finished.retriever, "--task", "moood", INPUT)
    assert udr(*words).complaint == "unknown task of this retriever 'moood'; did you mean mood?"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("minig.rounds=1", "{config}: minig: no such setting; did you mean mining?"),
        ("mining.round=1", "{config}: mining.round: no such setting; did you mean rounds?"),
        ("mining.rounds=many", "{config}: mining.rounds: Input should be a valid integer"),
        ("mining.rounds=-1", "{config}: mining.rounds: Input should be greater than or equal to 0"),
        ("train.list_sampling=best", "{config}: train.list_sampling: Input should be 'uniform' or 'stratified'"),
        ("seed=-1", "{config}: seed: Input should be greater than or equal to 0"),
        ("seed=2147483648", "{config}: seed: Input should be less than 2147483648"),
        ("train.epochs=.inf", "{config}: train.epochs: Input should be a finite number"),
        ("train.epochs=1e400", "{config}: train.epochs: Input should be a finite number"),
        ("train.round_epochs=1.0e+300", "{config}: train.round_epochs: Input should be less than or equal to 1000000"),
        ("train.lr=.inf", "{config}: train.lr: Input should be a finite number"),
        ("train.weight_decay=.inf", "{config}: train.weight_decay: Input should be a finite number"),
        ("train.temperature=.inf", "{config}: train.temperature: Input should be a finite number"),
        ("train.temperature=1e-300", "{config}: train.temperature: Input should be greater than or equal to 0.000001"),
        ("train={multi_task: false, tasks_per_step: 2}", "{config}: train: Value error, multi_task: false trains on"),
        ("train={multi_task: false, weighting: dwa}", "{config}: train: Value error, multi_task: false trains on"),
        ("train.weighting=pcgrad", "{config}: train: Value error, weighting pcgrad compares the tasks of a step: set"),
        (
            "evaluation.methods=[udr, knn]",
            "{config}: evaluation: Value error, methods: 'knn' is not one of zero_shot, ran",
        ),
        (
            "evaluation.encoders={udr: x}",
            "{config}: evaluation: Value error, encoders: 'udr' is the name of a method, or",
        ),
        (
            "evaluation.encoders={a/b: x}",
            "{config}: evaluation: Value error, encoders: 'a/b' is the name of a method, or",
        ),
        ("tasks=[mood, mood]", "{config}: tasks: Value error, a task is named twice"),
        ("tasks=[]", "{config}: tasks: "),
        ("lm.name=", "{config}: lm.name: "),
        ("mining", "override 'mining': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("lm.name.x=3", "override 'lm.name.x=3': name is not a group of settings"),
        ("mining={a: [", "override 'mining={a: [': the value is not YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_wrong(udr: Command, bench: Bench, override: str, problem: str) -> None:
    found = udr("run", bench.config, override).complaint
    assert found.startswith(problem.replace("{config}", str(bench.config)))
    assert not bench.out.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("tasks: [mood\nout: x", "{path}:2: not YAML"),
        ("- a\n- b\n", "{path}: expected `key: value` lines"),
        ("", "{path}: expected `key: value` lines"),
        ("out: x\ntasks: [mood]\n", "{path}: (top level): Value error, lm.name and encoder.name must be set"),
        ("tasks: [mood]\nlm: {name: fake}\nencoder: {name: x}\n", "{path}: out: Field required"),
    ],
)
def test_a_settings_file_that_is_none_is_named(udr: Command, tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert udr("run", path).complaint.startswith(problem.format(path=path))
    assert udr("run", tmp_path / "none.yaml").complaint.startswith(f"{tmp_path}/none.yaml: cannot be read")


def test_a_query_longer_than_the_budget_is_told_by_how_much(udr: Command, finished: Bench, lm_folder: Path) -> None:
    words = ("--retriever", finished.retriever, "--task", "mood", "--lm", lm_folder, "--budget", 20, "merry " * 100)
    found = udr("prompt", *words).complaint
    assert found.startswith("query query-0: ")
    assert "exceed the budget of 20; raise the token budget or shorten the input" in found


def test_a_budget_beyond_the_lms_context_is_refused(
    udr: Command, finished: Bench, bench: Bench, lm_folder: Path
) -> None:
    words = ("--retriever", finished.retriever, "--task", "mood", "--lm", lm_folder, "--budget", 257, INPUT)
    assert udr("prompt", *words).complaint == f"--budget: 257 tokens, and the LM {lm_folder} reads 256"
    words = ("run", bench.config, f"lm.name={lm_folder}", "evaluation.budget=257")
    assert udr(*words).complaint == f"evaluation.budget: 257 tokens, and the LM {lm_folder} reads 256"
    words = ("run", bench.config, f"lm.name={lm_folder}", "mining.max_tokens=257")
    assert udr(*words).complaint == f"mining.max_tokens: 257 tokens, and the LM {lm_folder} reads 256"
    assert not list(bench.out.glob("round-0/*"))


def test_an_order_or_a_selection_that_does_not_exist_is_named(udr: Command, finished: Bench, lm_folder: Path) -> None:
    words = ("--retriever", finished.retriever, "--task", "mood", "--lm", lm_folder, "--budget", 99, INPUT)
    found = udr("prompt", *words, "--order", "upwards").complaint
    assert "'upwards'" in found
    assert "descending" in found
    assert udr("prompt", *words, "--selection", "mmrr").complaint == "unknown selection 'mmrr'; did you mean mmr?"


def test_an_absent_or_broken_lm_folder_is_named(udr: Command, finished: Bench, bench: Bench, tmp_path: Path) -> None:
    absent, broken = tmp_path / "absent", tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "gpt2"}')
    for folder, reason in ((absent, "no such folder"), (broken, "")):
        problem = f"{folder}: cannot be loaded as a causal LM ({reason}"
        words = ("--retriever", finished.retriever, "--task", "mood", "--lm", folder, INPUT)
        assert udr("prompt", *words, "--answer").complaint.startswith(problem)
        assert udr("prompt", *words).complaint.startswith(f"{folder}: its tokenizer cannot be loaded ({reason}")
        assert udr("run", bench.config, f"lm.name={folder}").complaint.startswith(problem)


def test_a_device_that_this_machine_lacks_is_named(udr: Command, bench: Bench, lm_folder: Path) -> None:
    found = udr("run", bench.config, f"lm.name={lm_folder}", "lm.device=cuda:77").complaint
    assert found.startswith("device 'cuda:77': not on this machine")


def test_an_absent_encoder_is_named_before_the_lm_is_asked_and_may_be_put_right(
    udr: Command, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent"
    found = udr("run", bench.config, f"encoder.name={absent}").complaint
    assert found.startswith(f"encoder.name: {absent}: cannot be loaded (no such folder")
    assert not (bench.folder / "scores.sqlite").exists()
    assert udr("run", bench.config, "evaluation.methods=[udr]").code == 0


def test_settings_refused_before_anything_was_done_may_be_put_right_in_the_same_folder(
    udr: Command, bench: Bench, lm_folder: Path
) -> None:
    assert "reads 256" in udr("propose", bench.config, f"lm.name={lm_folder}", "mining.max_tokens=300").complaint
    assert "raise mining.max_tokens" in udr("propose", bench.config, "mining.max_tokens=16").complaint
    words = ("propose", bench.config, f"lm.name={lm_folder}", "mining.queries=2")
    assert udr(*words).code == 0
    assert "begun with other settings under 'mining'" in udr(*words[:-1], "mining.queries=3").complaint


def test_another_lm_or_changed_weights_under_an_old_run_are_refused(udr: Command, copy: Bench, lm_folder: Path) -> None:
    found = udr("run", copy.config, f"lm.name={lm_folder}").complaint
    assert found.startswith(f"{copy.out} was begun with lm fake-lm-1, which now is ")
    assert found.endswith("give the run another out folder")
    assert udr("run", copy.config).code == 0


def test_other_settings_under_an_old_run_are_refused(udr: Command, copy: Bench) -> None:
    assert udr("run", copy.config, "seed=3").complaint == (
        f"{copy.out}/config.yaml: this run was begun with other settings under 'seed'; give another out=FOLDER"
    )


def test_a_retriever_folder_without_the_untrained_encoder_says_how_to_add_it(
    udr: Command, copy: Bench, tmp_path: Path
) -> None:
    table = tmp_path / "rows.jsonl"
    table.write_text('{"input": "a b", "output": "up"}\n{"input": "c d", "output": "down"}\n')
    words = ("retrieve", "--retriever", copy.retriever, "--task", table, INPUT)
    shutil.rmtree(copy.retriever / "untrained")
    assert udr(*words).complaint == (
        f"{copy.retriever}: holds no untrained encoder, which a new task needs; run: udr index CONFIG"
    )
    assert udr("index", copy.config).code == 0
    assert udr(*words).code == 0


def test_a_folder_that_is_no_retriever_says_how_to_make_one(udr: Command, tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        assert udr("retrieve", "--retriever", folder, "--task", "mood", INPUT).complaint == (
            f"{folder}: not a retriever folder (no tasks/); run: udr run CONFIG"
        )


@pytest.mark.parametrize(
    "name",
    [
        "encoder/encoder.json",
        "encoder/query/model.safetensors",
        "encoder/query/config.json",
        "encoder/query/tokenizer.json",
        "encoder/query",
        "encoder",
        "tasks/mood/task.yaml",
        "tasks/mood/pool.jsonl",
        "tasks/mood/index/index.faiss",
        "tasks/mood/index/manifest.json",
        "tasks/mood/index",
    ],
)
def test_a_retriever_that_lacks_a_file_names_it(udr: Command, copy: Bench, name: str) -> None:
    path = copy.retriever / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    found = udr("retrieve", "--retriever", copy.retriever, "--task", "mood", INPUT).complaint
    part = "/".join(name.split("/")[: 3 if name.startswith("tasks") else 1])
    assert str(copy.retriever / part) in found


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize(
    "name",
    [
        "encoder/query/model.safetensors",
        "encoder/query/tokenizer.json",
        "encoder/demonstration/config.json",
        "tasks/mood/index/index.faiss",
    ],
)
def test_a_flipped_byte_of_a_retriever_is_noticed(udr: Command, copy: Bench, name: str, where: float) -> None:
    path = copy.retriever / name
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    found = udr("retrieve", "--retriever", copy.retriever, "--task", "mood", INPUT).complaint
    assert str(copy.retriever / "/".join(name.split("/")[: 3 if name.startswith("tasks") else 1])) in found


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"shared": true}', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["encoder/encoder.json", "tasks/mood/index/manifest.json"])
def test_a_damaged_description_of_a_retriever_is_noticed(udr: Command, copy: Bench, name: str, content: bytes) -> None:
    (copy.retriever / name).write_bytes(content)
    found = udr("retrieve", "--retriever", copy.retriever, "--task", "mood", INPUT).complaint
    assert found.startswith(str(copy.retriever))


def test_a_pool_that_lost_a_row_is_noticed(udr: Command, copy: Bench) -> None:
    path = copy.retriever / "tasks" / "mood" / "pool.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    found = udr("retrieve", "--retriever", copy.retriever, "--task", "mood", INPUT).complaint
    assert "the index holds 40 vectors, the pool 39" in found


def test_an_index_of_another_encoder_is_refused(udr: Command, copy: Bench) -> None:
    shutil.rmtree(copy.retriever / "encoder")
    shutil.copytree(copy.out / "round-0" / "encoder", copy.retriever / "encoder")
    assert "indexed with encoder" in udr("retrieve", "--retriever", copy.retriever, "--task", "mood", INPUT).complaint


@pytest.mark.parametrize("stage", ["score", "train"])
def test_a_stage_asked_before_its_time_names_the_file_it_misses(udr: Command, bench: Bench, stage: str) -> None:
    assert f"{bench.out}/round-0/mood." in udr(stage, bench.config).complaint


@pytest.mark.parametrize(
    ("words", "number"),
    [(("propose", "--round", "1"), 0), (("evaluate", "evaluation.methods=[udr]"), 1), (("index",), 1)],
)
def test_what_needs_a_trained_encoder_says_how_to_get_it(
    udr: Command, bench: Bench, words: tuple[str, ...], number: int
) -> None:
    found = udr(words[0], bench.config, *words[1:]).complaint
    assert found == f"{bench.out}/round-{number}/encoder: not trained yet; run: udr train --round {number}"


@pytest.mark.parametrize("words", [("propose",), ("score",), ("score", "--dry-run"), ("train",)])
def test_a_round_after_the_last_one_is_refused(udr: Command, copy: Bench, words: tuple[str, ...]) -> None:
    assert udr(words[0], copy.config, "--round", 2, *words[1:]).complaint == (
        "--round 2: mining.rounds is 1; for more give another out=FOLDER a larger one"
    )
    assert not (copy.out / "round-2").exists()


def test_a_damaged_scored_list_is_named_by_file_and_line(udr: Command, copy: Bench) -> None:
    path = copy.out / "round-1" / "paint.scored.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:-9]
    path.write_text("\n".join(lines) + "\n")
    shutil.rmtree(copy.out / "round-1" / "encoder")
    assert udr("train", copy.config, "--round", 1).complaint == f"{path}:7: not a candidate list"


@pytest.mark.parametrize(("kept", "how"), [(0, "empty"), (5, "5 lists of 24")])
def test_scored_lists_that_were_cut_off_are_not_taken_for_all(udr: Command, copy: Bench, kept: int, how: str) -> None:
    path = copy.out / "round-1" / "paint.scored.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]))
    shutil.rmtree(copy.out / "round-1" / "encoder")
    found = udr("train", copy.config, "--round", 1).complaint
    assert found == f"{path}: damaged ({how}); delete it and run: udr score --round 1"
    path.unlink()
    assert udr("score", copy.config, "--round", 1).code == 0
    assert path.read_bytes() == b"".join(lines)


def test_scored_lists_are_not_taken_where_nothing_was_proposed(udr: Command, copy: Bench) -> None:
    for stage in ("proposed", "scored"):
        (copy.out / "round-1" / f"paint.{stage}.jsonl").write_bytes(b"")
    shutil.rmtree(copy.out / "round-1" / "encoder")
    assert "paint.scored.jsonl: damaged (empty)" in udr("train", copy.config, "--round", 1).complaint


def test_an_emptied_file_of_candidates_is_named(udr: Command, copy: Bench) -> None:
    for stage in ("proposed", "scored"):
        (copy.out / "round-1" / f"paint.{stage}.jsonl").unlink()
    path = copy.out / "round-1" / "paint.proposed.jsonl"
    path.write_bytes(b"")
    found = udr("score", copy.config, "--round", 1).complaint
    assert found == f"{path}: damaged (empty); delete it and run: udr propose --round 1"


def test_a_damaged_score_cache_is_named(udr: Command, bench: Bench) -> None:
    (bench.folder / "scores.sqlite").write_bytes(b"no database" * 100)
    assert udr("run", bench.config).complaint.startswith(f"{bench.folder}/scores.sqlite: the score cache cannot")


def test_a_damaged_checkpoint_says_to_delete_it(udr: Command, bench: Bench) -> None:
    for stage in ("propose", "score"):
        assert udr(stage, bench.config).code == 0
    path = bench.out / "round-0" / "encoder.checkpoint"
    path.write_bytes(b"half a checkpoint")
    found = udr("train", bench.config).complaint
    assert found == f"{path}: the checkpoint is damaged or of another encoder; delete it to begin anew"


def test_an_out_folder_that_is_a_file_is_named(udr: Command, bench: Bench) -> None:
    bench.out.write_text("in the way")
    assert str(bench.out) in udr("run", bench.config).complaint


def test_a_cut_off_weights_file_is_named(udr: Command, bench: Bench, lm_folder: Path, tmp_path: Path) -> None:
    for key, folder in (("lm", lm_folder), ("encoder", Path(bench.settings().encoder.name))):
        broken = tmp_path / key
        shutil.copytree(folder, broken)
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        assert f"{broken}: cannot be loaded" in udr("run", bench.config, f"{key}.name={broken}").complaint


def test_a_package_that_is_not_installed_is_named_with_its_extra(
    udr: Command, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = udr("retrieve", "--retriever", finished.retriever, "--task", "mood", INPUT)
    assert done.complaint == "transformers is not installed; run: pip install 'udr[lm]'"


@pytest.mark.parametrize("exhaust", [lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)], ids=["torch", "python"])
def test_a_machine_without_enough_memory_is_told_what_to_make_smaller(
    udr: Command, bench: Bench, monkeypatch: pytest.MonkeyPatch, exhaust: Callable[[], object]
) -> None:
    monkeypatch.setattr("training.run.propose", lambda run, number: exhaust())
    assert udr("propose", bench.config).complaint.startswith("out of memory; make lm.row_tokens, train.batch or ")


def test_a_gguf_file_that_is_none_is_named(udr: Command, tmp_path: Path) -> None:
    absent = tmp_path / "absent.gguf"
    assert udr("lm", "convert", absent, tmp_path / "out").complaint == f"{absent}: no such file; name a GGUF file"
    for name, content in {"short.gguf": b"GGUF", "other.gguf": b"no such file at all" * 99}.items():
        (tmp_path / name).write_bytes(content)
        assert f"{name}: cannot be converted" in udr("lm", "convert", tmp_path / name, tmp_path / "out").complaint


def test_a_second_command_in_one_run_folder_is_refused_while_the_first_is_at_work(udr: Command, bench: Bench) -> None:
    with alone_in(bench.out):
        command = [sys.executable, "-m", "training.cli", "propose", str(bench.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"{bench.out}: another udr is at work there" in done.stderr
    assert udr("propose", bench.config).code == 0

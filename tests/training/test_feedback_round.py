"""A mining round on what came of prompts: what it learns from, and that it goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from workbench import Bench, digest, mood_rows

from training.evaluate import index
from training.run import encoder_folder, final_round, open_run, propose
from udr.candidates import read_candidates
from udr.encoder import load_encoder
from udr.fakes import FakeLM


def export(path: Path, count: int = 24, **more: Any) -> Path:
    """Outcomes of queries that no pool holds: right answers, accepted corrections, and wrong ones."""
    lines = []
    for i, row in enumerate(mood_rows(count, seed=9)):
        line: dict[str, Any] = {"id": i + 1, "at": 0.0, "caller": "", "state": "recorded", "input": row["input"]}
        line["demonstrations"] = [f"mood-{i % 5}", f"mood-{5 + i % 7}"]
        if i % 3 == 0:
            line |= {"output": row["output"], "score": 1.0}
        elif i % 3 == 1:
            line |= {"output": "up", "corrected_output": row["output"], "state": "accepted"}
        else:
            line |= {"output": "up", "score": float(i % 2)} if i % 2 == 0 else {"score": 1.0}
        lines.append(json.dumps(line | more))
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return export(tmp_path / "mood.jsonl")


def files(bench: Bench) -> dict[str, str]:
    """Every file of the feedback round, by content."""
    folder = bench.out / "round-2"
    return {str(p.relative_to(folder)): digest(p) for p in folder.rglob("*") if p.is_file()}


def test_a_round_on_feedback_scores_what_is_known_ranks_what_is_not_and_goes_on_from_the_last(
    copy: Bench, udr: Any, told: Path
) -> None:
    before = load_encoder(copy.out / "round-1" / "encoder").fingerprint
    done = udr("train", copy.config, "--feedback", f"mood={told}")
    assert done.code == 0, done.err
    assert done.out.startswith("mood: 24 outcomes, 16 queries with known outputs (8 of them corrections)")
    folder = copy.out / "round-2"
    scored = read_candidates(folder / "mood.scored.jsonl")
    assert {one.query_id for one in scored} == {f"feedback-{i + 1}" for i in range(24) if i % 3 < 2}
    assert all(c.lm_score is not None and c.lm_score <= 0 for one in scored for c in one.candidates)
    ranked = read_candidates(folder / "mood.outcomes.jsonl")
    assert {one.query_id for one in ranked} <= {f"outcome-{i + 1}" for i in range(24) if i % 3 == 2}
    assert ranked
    run = open_run(copy.settings())
    assert final_round(run) == 2
    after = load_encoder(encoder_folder(run, 2, "")).fingerprint
    assert after != before
    index(run)
    assert load_encoder(copy.retriever / "encoder").fingerprint == after
    listed = udr("runs", copy.out, "--json")
    assert [r["number"] for r in json.loads(listed.out)[0]["rounds"]] == [0, 1, 2]


def test_failures_are_compared_with_what_went_right(copy: Bench, udr: Any, tmp_path: Path) -> None:
    """Right answers are queries whose output is known; the failures beside them still rank demonstrations."""
    path = tmp_path / "mood.jsonl"
    lines = []
    for i, row in enumerate(mood_rows(24, seed=9)):
        good = i % 2 == 0
        line = {"id": i + 1, "state": "recorded", "input": row["input"], "output": row["output"] if good else "up"}
        lines.append(line | {"score": float(good), "demonstrations": ["mood-1", "mood-2" if good else "mood-3"]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert udr("train", copy.config, "--feedback", f"mood={path}").code == 0
    ranked = read_candidates(copy.out / "round-2" / "mood.outcomes.jsonl")
    assert {one.query_id for one in ranked} == {f"outcome-{i + 1}" for i in range(24) if i % 2}
    for one in ranked:
        by_rank = [c.demonstration_id for c in sorted(one.candidates, key=lambda c: c.rank or 0)]
        assert by_rank.index("mood-2") < by_rank.index("mood-3")


def test_the_same_outcomes_are_learnt_once_and_more_of_them_are_another_round(
    copy: Bench, udr: Any, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert udr("train", copy.config, "--feedback", f"mood={told}").code == 0
    before = files(copy)
    again = udr("train", copy.config, "--feedback", f"mood={told}")
    assert again.out.strip() == "round 2 has learnt from these outcomes already"
    assert files(copy) == before
    export(told, 30)
    assert udr("train", copy.config, "--feedback", f"mood={told}").code == 0
    assert final_round(open_run(copy.settings())) == 3

    def refuse(*_: Any) -> None:
        raise AssertionError("the LM was asked again")

    monkeypatch.setattr(FakeLM, "loglikelihood", refuse)  # the cache knows what is left
    shutil.rmtree(copy.out / "round-3")
    assert udr("train", copy.config, "--feedback", f"mood={told}").code == 0


def test_an_interrupted_round_ends_as_one_that_never_was(copy: Bench, udr: Any, told: Path, tmp_path: Path) -> None:
    assert udr("train", copy.config, "--feedback", f"mood={told}").code == 0
    whole = files(copy)
    for left in (("feedback.json",), ("feedback.json", "mood.feedback.jsonl", "mood.proposed.jsonl")):
        for path in list((copy.out / "round-2").iterdir()):
            if path.name not in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        other = export(tmp_path / "other.jsonl", 12)
        assert "begun with other outcomes" in udr("train", copy.config, "--feedback", f"mood={other}").complaint
        assert udr("train", copy.config, "--feedback", f"mood={told}").code == 0
        assert files(copy) == whole


def test_corrections_that_wait_or_were_rejected_teach_nothing(copy: Bench, udr: Any, tmp_path: Path) -> None:
    path = tmp_path / "mood.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": i, "state": state, "input": f"bright {i}", "output": "up", "corrected_output": "down"})
            + "\n"
            for i, state in enumerate(("waiting", "rejected"))
        )
    )
    done = udr("train", copy.config, "--feedback", f"mood={path}")
    assert done.out.strip() == "mood: 2 outcomes, nothing to learn from"
    assert not (copy.out / "round-2").exists()


def test_what_cannot_be_learnt_from_is_one_line(bench: Bench, copy: Bench, udr: Any, told: Path) -> None:
    assert "not trained yet" in udr("train", bench.config, "--feedback", f"mood={told}").complaint
    assert "did you mean mood?" in udr("train", copy.config, "--feedback", f"mod={told}").complaint
    assert "expected TASK=FILE" in udr("train", copy.config, "--feedback", str(told)).complaint
    assert "leave --round out" in udr("train", copy.config, "--round", 1, "--feedback", f"mood={told}").complaint
    assert udr("train", copy.config, *(f"--feedback=mood={told}",) * 2).complaint.startswith(
        "--feedback: mood is given"
    )
    propose(open_run(copy.settings()), 2)  # another way to a round of that number
    assert "begun by another command" in udr("train", copy.config, "--feedback", f"mood={told}").complaint
    assert final_round(open_run(copy.settings())) == 1
    told.write_text('{"id": 1}\n')
    assert f"{told}:1: no outcome" in udr("train", copy.config, "--feedback", f"mood={told}").complaint
    assert "no such file" in udr("train", copy.config, "--feedback", "mood=nowhere.jsonl").complaint

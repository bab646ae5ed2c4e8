"""LM scores from the command line: what they will cost, how fast they come, and the cache that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llm_server import LLMServer, serving
from workbench import Bench, Outcome

from udr.candidates import read_candidates
from udr.scoring.cache import ScoreCache

Command = Callable[..., Outcome]


@pytest.fixture
def proposed(udr: Command, bench: Bench) -> Bench:
    """A run folder with the candidates of round 0."""
    assert udr("propose", bench.config).code == 0
    return bench


def scores_of(bench: Bench) -> Path:
    return bench.folder / "scores.sqlite"


# -- what it will cost


def test_a_dry_run_tells_pairs_requests_and_tokens_and_writes_no_lists(udr: Command, proposed: Bench) -> None:
    told = json.loads(udr("score", proposed.config, "--dry-run", "--json").out)
    pairs = {
        name: sum(len(one.candidates) for one in read_candidates(proposed.out / "round-0" / f"{name}.proposed.jsonl"))
        for name in ("mood", "paint")
    }
    assert {name: told[name]["pairs"] for name in pairs} == pairs
    assert told["all"]["pairs"] == sum(pairs.values())
    assert told["mood"]["requests"] == 2 * pairs["mood"]  # two labels
    assert told["paint"]["requests"] == pairs["paint"]
    assert told["mood"]["known"] == 0
    assert told["mood"]["tokens"] > 10 * told["mood"]["requests"]
    assert told["mood"]["seconds"] > 0
    assert not list(proposed.out.glob("round-0/*.scored.jsonl"))
    assert "mood" in udr("score", proposed.config, "--dry-run").out


def test_what_a_dry_run_counts_is_what_is_computed(
    udr: Command, proposed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udr.scoring.estimate.TIMED", 0)
    told = json.loads(udr("score", proposed.config, "--dry-run", "--json").out)
    assert udr("score", proposed.config).code == 0
    assert len(ScoreCache(scores_of(proposed))) == told["all"]["requests"]


def test_a_dry_run_knows_what_the_cache_holds(udr: Command, proposed: Bench) -> None:
    assert udr("score", proposed.config).code == 0
    for path in proposed.out.glob("round-0/*.scored.jsonl"):
        path.unlink()
    told = json.loads(udr("score", proposed.config, "--dry-run", "--json").out)["all"]
    assert told["known"] == told["requests"] > 0
    assert told["tokens"] == told["seconds"] == 0


def test_scoring_tells_its_speed_and_what_came_from_the_cache(udr: Command, proposed: Bench) -> None:
    assert "pairs/s" in (err := udr("score", proposed.config).err)
    assert "tokens/s, 0 % from the cache" in err
    for path in proposed.out.glob("round-0/*.scored.jsonl"):
        path.unlink()
    assert " 0 tokens/s, 100 % from the cache" in udr("score", proposed.config).err


@pytest.mark.parametrize("shortcut", ["first_token", "halving"])
def test_shortcuts_ask_less_and_rank_every_candidate(udr: Command, proposed: Bench, shortcut: str) -> None:
    config = proposed.config
    config.write_text(config.read_text().replace("mining:", f"mining:\n  shortcut: {shortcut}"))
    (proposed.out / "config.yaml").unlink()
    assert udr("score", config).code == 0
    for name in ("mood", "paint"):
        lists = read_candidates(proposed.out / "round-0" / f"{name}.scored.jsonl")
        assert all(
            sorted(c.rank or 0 for c in one.candidates) == list(range(1, len(one.candidates) + 1)) for one in lists
        )


# -- the cache


def test_scores_are_told_shared_and_forgotten(udr: Command, proposed: Bench, tmp_path: Path) -> None:
    assert udr("score", proposed.config).code == 0
    cache, table = scores_of(proposed), tmp_path / "scores.parquet"
    told = json.loads(udr("scores", "stats", cache, "--json").out)
    assert [m["fingerprint"] for m in told["models"]] == ["fake-lm-1"]
    assert told["scores"] == told["models"][0]["scores"] > 100
    assert f"{told['scores']:,}" in udr("scores", "stats", cache).out
    assert udr("scores", "export", cache, table).out == f"{table}: {told['scores']:,} scores\n"
    other = tmp_path / "other.sqlite"
    assert udr("scores", "import", other, table).out == f"{table}: {told['scores']:,} new, 0 known\n"
    assert udr("scores", "import", other, table).out == f"{table}: 0 new, {told['scores']:,} known\n"
    assert "say which" in udr("scores", "prune", other).complaint
    assert "did you mean fake-lm-1" in udr("scores", "prune", other, "--model", "fake-lm").complaint
    absent = tmp_path / "absent.parquet"
    assert "did you mean fake-lm-1" in udr("scores", "export", other, absent, "--model", "fake-lm").complaint
    assert not absent.exists()
    assert udr("scores", "prune", other, "--older-than", 1).out == f"{other}: 0 scores forgotten\n"
    assert udr("scores", "prune", other, "--older-than", 100_000).out == f"{other}: 0 scores forgotten\n"
    too_long = udr("scores", "prune", other, "--older-than", 999_999_999)
    assert (too_long.code, "Invalid value for '--older-than'" in too_long.err) == (2, True)
    assert (
        udr("scores", "prune", other, "--model", "fake-lm-1").out == f"{other}: {told['scores']:,} scores forgotten\n"
    )
    assert json.loads(udr("scores", "stats", other, "--json").out)["scores"] == 0


def test_a_misspelt_cache_is_refused_and_none_is_begun(udr: Command, tmp_path: Path) -> None:
    assert "no such score cache" in udr("scores", "stats", tmp_path / "absent.sqlite").complaint
    assert not list(tmp_path.iterdir())


# -- LLM servers


def served(bench: Bench, lm_folder: Path) -> None:
    """Name a real LM, in float32: rounding to bfloat16 would rank near ties of two backends otherwise."""
    bench.config.write_text(bench.config.read_text().replace("name: fake", f"name: {lm_folder}\n  dtype: float32", 1))


def test_the_whole_job_runs_with_the_lm_behind_a_server_and_gives_the_same_table(
    udr: Command, bench: Bench, lm_folder: Path, make_lm: Callable[..., Any], tmp_path: Path
) -> None:
    served(bench, lm_folder)
    offers = {"logprob_token_ids", "prompt_logprobs", "tokenize"}
    here = json.loads(udr("run", bench.config, "--json").out)
    with serving(LLMServer(make_lm("gpt2"), str(lm_folder), offers)) as url:
        there = udr("run", bench.config, f"out={tmp_path / 'there'}", "--scorer", url, "--json")
    assert there.code == 0, there.err
    assert json.loads(there.out)["scores"] == here["scores"]
    assert len(json.loads(udr("scores", "stats", tmp_path / "scores.sqlite", "--json").out)["models"]) == 1


def test_a_server_that_holds_another_model_is_refused_at_once_or_later(
    udr: Command, bench: Bench, lm_folder: Path, make_lm: Callable[..., Any]
) -> None:
    served(bench, lm_folder)
    server = LLMServer(make_lm("gpt2"), str(lm_folder), {"echo"})
    right = server.logs

    def wrong(ids: list[int]) -> Any:
        return right(ids)[:, ::-1]

    with serving(server) as url:
        words = (bench.config, "lm.patience=0.2", "--scorer", url)
        server.logs = wrong  # type: ignore[method-assign]
        assert f"from those of {lm_folder}: it holds another model" in udr("propose", *words).complaint
        server.logs = right  # type: ignore[method-assign]
        assert udr("propose", *words).code == 0
        server.logs = wrong  # type: ignore[method-assign]
        words = (*words, "lm.check_weights=false")
        assert f"{scores_of(bench)} holds: it holds another model" in udr("score", *words).complaint
    assert "no LLM server answers" in udr("score", *words).complaint


@pytest.mark.parametrize("url", ["http://[::1", "http://a..b"])
def test_what_is_no_servers_address_is_named(udr: Command, bench: Bench, lm_folder: Path, url: str) -> None:
    served(bench, lm_folder)
    words = (bench.config, "lm.check_weights=false", "--scorer", url)
    assert udr("propose", *words).complaint.startswith(f"{url}: not a server's address (")


def test_a_key_file_that_cannot_be_read_is_named(udr: Command, bench: Bench, lm_folder: Path) -> None:
    served(bench, lm_folder)
    words = ("lm.check_weights=false", "lm.key_file=/absent/key", "--scorer", "http://127.0.0.1:9")
    assert "lm.key_file: /absent/key: cannot be read" in udr("propose", bench.config, *words).complaint

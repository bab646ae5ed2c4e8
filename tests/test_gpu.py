"""On a CUDA device the same numbers come out as on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from udr.data import TaskData
from udr.encoder import build_encoder
from udr.fakes import FakeLM
from udr.mining import propose_bm25, score_lists
from udr.scoring.causal_lm import CausalLM, build_causal_lm
from udr.tasks.spec import TaskSpec
from udr.train import RankedTask, fit
from udr.types import Demonstration

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEXTS = [f"{a} {b} was {c}" for a in ("the film", "a plot", "one evening") for b in "xyz" for c in ("good", "so bad")]


@pytest.mark.parametrize("kind", ["gemma3", "llama", "gpt2"])
@pytest.mark.parametrize("row_tokens", [32, None])
def test_an_lm_scores_and_answers_alike(
    make_lm: Callable[..., CausalLM], tmp_path: Path, kind: str, row_tokens: int | None
) -> None:
    lm = make_lm(kind)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    plain, fast = (
        build_causal_lm(str(tmp_path), dtype="float32", device=d, row_tokens=row_tokens) for d in ("cpu", "cuda")
    )
    assert fast.tree
    assert fast.fingerprint == f"{plain.fingerprint}-cuda"
    assert fast.model.device.type == "cuda"
    contexts = [f"{a}\n{b}\tIt was" for a in TEXTS for b in TEXTS[:5]]
    continuations = [" great" if i % 2 else " not so bad" for i in range(len(contexts))]
    expected = plain.loglikelihood(contexts, continuations).nats
    np.testing.assert_allclose(fast.loglikelihood(contexts, continuations).nats, expected, atol=1e-3)
    assert np.ptp(expected) > 0.1
    assert fast.generate(contexts[:9], 6) == plain.generate(contexts[:9], 6)


def test_an_encoder_learns_alike(bert_folder: Path, sentiment: TaskSpec) -> None:
    pool = [Demonstration(f"{i}", text, str(i % 2)) for i, text in enumerate(TEXTS)]
    data = TaskData(sentiment, tuple(pool), ())
    ranked = RankedTask(sentiment, data.by_id, score_lists(data, propose_bm25(sentiment, pool, pool, 9), FakeLM()))
    losses, vectors = [], []
    for device in ("cpu", "cuda"):
        encoder = build_encoder(str(bert_folder), device=device, dropout=0.0)
        steps = fit(encoder, [ranked], steps=20, batch=8, list_size=4, temperature=0.1, warmup=2, lr=1e-3)
        losses.append([step.loss for step in steps])
        assert encoder.device.type == device
        vectors.append(encoder.encode_demonstrations(pool))
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert (vectors[0] * vectors[1]).sum(1).min() > 0.999

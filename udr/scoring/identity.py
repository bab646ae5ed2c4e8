"""Is the model behind a server the one that was asked for? By its name, its tokenizer and its log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udr.errors import ConfigError, FingerprintMismatch
from udr.scoring.endpoint import Endpoint
from udr.scoring.reads import plan
from udr.scoring.tokens import LMTokenizer
from udr.types import LMScorer

__all__ = ["PROBES", "apart", "check_tokenizer", "check_weights", "describe", "probe", "probe_endpoint", "served_model"]

# texts whose log-probabilities tell two models apart; any model of words has an opinion on them
PROBES = (
    ("The capital of France is", " Paris"),
    ("Water boils at one hundred degrees", " Celsius"),
    ("Review: a dull plot and a worse cast.\tSentiment:", " negative"),
    ("one two three four five six", " seven"),
    ("def add(a, b):\n    return", " a + b"),
    ("She opened the window because it was too", " hot"),
)
APART = 0.03  # of the mean log-probability: rounding in bfloat16 stays below a hundredth, another model does not


def served_model(endpoint: Endpoint, name: str, served_name: str = "") -> dict[str, Any]:
    """The entry of the server's list of models that is meant.

    Raises:
        ConfigError: it serves another model.
    """
    rows = endpoint.models()
    wanted = served_name or name
    exact = [row for row in rows if wanted in (row["id"], row.get("root"))]
    folders = [row for row in rows if Path(wanted).name in (Path(row["id"]).name, Path(row.get("root") or "").name)]
    found = exact or ([] if served_name else folders)
    if found:
        return found[0]
    ids = ", ".join(row["id"] for row in rows) or "nothing"
    raise ConfigError(
        f"{endpoint.url}: serves {ids}, not {wanted}; if that is the same model, say so: lm.served_name=NAME"
    )


def describe(model: Mapping[str, Any]) -> tuple[int, str]:
    """Of an entry of a server's list: how many tokens it reads (0: it does not say), and what kind of server it is.

    llama.cpp also tells how the weights are quantised, which belongs to the kind: scores of two do not mix.
    """
    meta = model["meta"] if isinstance(model.get("meta"), dict) else {}
    words = str(model.get("owned_by") or "server").lower(), *str(meta.get("ftype") or "").split()
    return int(model.get("max_model_len") or meta.get("n_ctx") or 0), "-".join(w for w in words if w != "-")


def check_tokenizer(endpoint: Endpoint, tokens: LMTokenizer, name: str) -> None:
    """Compare token ids, where the server tells its own.

    Raises:
        FingerprintMismatch: they differ.
    """
    for before, after in PROBES:
        theirs = endpoint.tokenize(before + after)
        if theirs is not None and theirs != list(tokens.tokenizer(before + after)["input_ids"]):
            raise FingerprintMismatch(
                f"{endpoint.url}: its tokenizer is not that of {name}; start the server with the model that lm.name "
                "names, or name the served one there"
            )


def probe(lm: LMScorer) -> list[float]:
    """Log-probabilities of the probes, nats."""
    return [float(v) for v in lm.loglikelihood([a for a, _ in PROBES], [b for _, b in PROBES]).nats]


def apart(a: Sequence[float], b: Sequence[float]) -> float:
    """How far two models' probes lie apart, as a share of their size."""
    first, second = np.array(a), np.array(b)
    return float(np.abs(first - second).mean() / max(np.abs(first).mean(), np.abs(second).mean(), 1e-9))


def probe_endpoint(endpoint: Endpoint, tokens: LMTokenizer) -> list[float]:
    """The probes of one server, nats.

    Raises:
        Failure: the server did not answer.
    """
    starts, ends = tokens.requests([a for a, _ in PROBES], [b for _, b in PROBES], 10**6)
    asked = plan(starts, ends, endpoint.offers)
    values = [dict(zip(asked.columns(i), endpoint.read([r])[0], strict=True)) for i, r in enumerate(asked.reads)]
    return [sum(values[read][column] for read, column in places) for places in asked.places]


def check_weights(url: str, found: Sequence[float], known: Mapping[str, Sequence[float]]) -> None:
    """Compare a server's probes with those of sources that are trusted, by the sources' names.

    Raises:
        FingerprintMismatch: they differ by more than rounding.
    """
    for source, others in known.items():
        distance = apart(found, others)
        if distance > APART:
            raise FingerprintMismatch(
                f"{url}: its log-probabilities lie {100 * distance:.0f} % from those of {source}: it holds another "
                "model; start it with the one that lm.name names"
            )

"""An LM behind LLM servers or another engine: log-likelihoods of exact tokens, and greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from warnings import warn

import numpy as np

from udr.errors import PartlyScored, ScorerUnavailable, UDRError, UDRWarning
from udr.scoring.endpoint import FEATURES, Endpoint, Failure, Read
from udr.scoring.fleet import Fleet
from udr.scoring.identity import PROBES, check_tokenizer, check_weights, describe, probe_endpoint, served_model
from udr.scoring.model_config import model_fingerprint, read_config
from udr.scoring.reads import bundles, plan
from udr.scoring.tokens import LMTokenizer, load_tokenizer
from udr.types import LogLikelihoods

__all__ = ["FleetReader", "Reader", "ServedLM", "build_served_lm"]

UNTOLD_LENGTH = 2048  # tokens that a server reads which does not say so
CALLS_AHEAD = 16  # requests of each in-flight place that one call hands over


class Reader(Protocol):
    """What answers reads for an LM that is not in this process' hands: servers, or an engine."""

    @property
    def offers(self) -> frozenset[str]: ...  # of `udr.scoring.endpoint.FEATURES`
    @property
    def prompts_per_call(self) -> int: ...
    def read(self, reads: Sequence[Read]) -> tuple[list[list[float] | None], UDRError | None]: ...
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]: ...
    def close(self) -> None: ...


class FleetReader:
    """Reads answered by servers, many at once.

    Raises:
        ScorerUnavailable: there is no way of scoring that all of them offer.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, in_flight: int = 16, patience: float = 120.0) -> None:
        self.endpoints = endpoints
        self.fleet: Fleet[Any, Any] = Fleet(endpoints, in_flight=in_flight, patience=patience)
        self.prompts_per_call = CALLS_AHEAD * in_flight * len(endpoints)
        self.offers = frozenset.intersection(*(e.offers for e in endpoints))
        if not self.offers:
            self.fleet.close()
            told = "; ".join(f"{e.url}: {', '.join(sorted(e.offers)) or 'none'}" for e in endpoints)
            raise ScorerUnavailable(
                f"no way of scoring that all servers offer ({told}); one of {', '.join(FEATURES)} is needed"
            )

    def read(self, reads: Sequence[Read]) -> tuple[list[list[float] | None], UDRError | None]:
        """Nats of every read's targets, None for those that were lost, and why they were."""
        jobs = bundles(reads)
        results, error = self.fleet.run(jobs, lambda endpoint, job: endpoint.read([reads[i] for i in job]))
        found: list[list[float] | None] = [None] * len(reads)
        for job, result in zip(jobs, results, strict=True):
            for i, nats in zip(job, result or (), strict=False):
                found[i] = nats
        return found, error

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """What follows each prompt up to the first newline.

        Raises:
            ScorerUnavailable: the servers were lost.
        """
        results, error = self.fleet.run(prompts, lambda endpoint, one: endpoint.generate([one], max_new_tokens)[0])
        if error is not None:
            raise error
        return [str(text) for text in results]

    def close(self) -> None:
        self.fleet.close()


class ServedLM:
    """A frozen LM behind a reader. Texts become token ids here, by the LM's own tokenizer."""

    def __init__(self, reader: Reader, tokens: LMTokenizer, fingerprint: str, context_length: int) -> None:
        self.reader = reader
        self.tokens = tokens
        self._fingerprint = fingerprint
        self._context_length = context_length
        self.tokens_computed = 0

    @property
    def prompts_per_call(self) -> int:
        return self.reader.prompts_per_call

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def context_length(self) -> int:
        return self._context_length

    def close(self) -> None:
        self.reader.close()

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS."""
        return self.tokens.encode(text)

    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]:
        """The shortest beginnings that tell options apart behind `before`."""
        return self.tokens.beginnings(before, options)

    def count_tokens(self, contexts: Sequence[str], continuations: Sequence[str]) -> int:
        """Tokens of the prompts that would be sent."""
        starts, ends = self.tokens.requests(contexts, continuations, self.context_length - 1)
        return sum(len(read.ids) for read in plan(starts, ends, self.reader.offers).reads)

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        """Score each continuation after its context: nats (n,) summed over its tokens, and their number (n,).

        Raises:
            ConfigError: an empty continuation.
            PromptTooLong: a request that exceeds the LM's context (names its number and length).
            PartlyScored: servers were lost on the way, or one answered with nonsense again and again.
        """
        # one token less than the context: servers generate one behind the prompt
        starts, ends = self.tokens.requests(contexts, continuations, self.context_length - 1)
        planned = plan(starts, ends, self.reader.offers)
        results, error = self.reader.read(planned.reads)
        values: dict[tuple[int, int], float] = {}  # (read, column) -> nats
        for i, nats in enumerate(results):
            if nats is not None:
                values.update({(i, column): v for column, v in zip(planned.columns(i), nats, strict=True)})
                self.tokens_computed += len(planned.reads[i].ids)
        done = [i for i, places in enumerate(planned.places) if all(p in values for p in places)]
        found = LogLikelihoods(
            np.array([sum(values[p] for p in planned.places[i]) for i in done], dtype=np.float32),
            np.array([len(ends[i]) for i in done], dtype=np.int64),
        )
        if error is not None:
            raise PartlyScored(str(error), done, found) from None
        return found

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Answer each prompt greedily up to the first newline; spaces at both ends are cut.

        Raises:
            PromptTooLong: a prompt that leaves no room for the answer.
            ScorerUnavailable: the servers were lost.
        """
        ids = self.tokens.prompts(prompts, max_new_tokens, self.context_length)
        texts = self.reader.generate(ids, max_new_tokens)
        return [text.lstrip(" ").split("\n")[0].strip() for text in texts]


def build_served_lm(
    name: str,
    servers: Sequence[str],
    *,
    revision: str = "main",
    served_name: str = "",
    in_flight: int = 16,
    timeout: float = 120.0,
    patience: float = 120.0,
    key: str = "",
    expected: Mapping[str, Sequence[float]] | None = None,
    recall: Callable[[str, Sequence[float]], Mapping[str, Sequence[float]]] | None = None,
) -> ServedLM:
    """Open the LM `name` (a local folder or hub name, for its tokenizer) that `servers` hold.

    Servers that do not answer at the start are left out, with a warning, where another one does. `expected` are
    log-probabilities of `PROBES` from a source that is trusted, by that source's name; `recall` is given the LM's
    fingerprint and its probes, and gives those it knows that fingerprint by.

    Raises:
        ScorerUnavailable: no server answers, or none offers a way of scoring.
        ConfigError: a server holds another model than asked for.
        FingerprintMismatch: a server's tokenizer or weights are not those asked for.
    """
    tokens = load_tokenizer(name, revision)
    endpoints: list[Endpoint] = []
    with ExitStack() as opened:  # closes them all where one is refused
        silent, lengths, kinds = [], [], set()
        known = dict(expected or {})
        for url in dict.fromkeys(servers):
            endpoint = Endpoint(url, timeout=timeout, key=key, connections=in_flight)
            opened.callback(endpoint.close)
            try:
                model = served_model(endpoint, name, served_name)
                endpoint.model = model["id"]
                check_tokenizer(endpoint, tokens, name)
                endpoint.detect(tokens.start_ids + tokens.encode(PROBES[0][0]))
                if endpoint.offers:
                    found = probe_endpoint(endpoint, tokens)
                    check_weights(endpoint.url, found, known)
                    known[endpoint.url] = found
            except Failure as failure:
                silent.append(str(failure))
                continue
            length, kind = describe(model)
            lengths += [length] if length else []
            kinds.add(kind)
            endpoints.append(endpoint)
        if not endpoints:
            raise ScorerUnavailable(f"no LLM server answers ({'; '.join(silent)})")
        if silent:
            warn(f"left out: {'; '.join(silent)}", UDRWarning, stacklevel=2)
        lengths = lengths or [int(min(tokens.tokenizer.model_max_length, UNTOLD_LENGTH))]
        base = model_fingerprint(name, revision, None if Path(name).is_dir() else read_config(name, revision))
        # two servers' numbers differ in the last bits as two devices' do: they do not mix with those made in process
        fingerprint = f"{base}-served-by-{'+'.join(sorted(kinds))}"
        reader = FleetReader(endpoints, in_flight=in_flight, patience=patience)
        opened.callback(reader.close)
        if recall:
            check_weights(endpoints[0].url, known[endpoints[0].url], recall(fingerprint, known[endpoints[0].url]))
        opened.pop_all()
    return ServedLM(reader, tokens, fingerprint, min(lengths))

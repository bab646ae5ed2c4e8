"""One LLM server that speaks the OpenAI API: what it offers for scoring, and single attempts at requests.

A server scores in one of five ways, found out by asking:

- `logprob_token_ids`: log-probabilities of chosen tokens after a prompt (vLLM). The prefix cache stays in use.
- `prompt_logprobs`: of every token of a prompt (vLLM).
- `echo`: the same as OpenAI's completions give it with `echo` and `logprobs` (vLLM, SGLang, older servers).
- `generative_scoring`: the probability of one token after each of many prompts.
- `top_logprobs`: the likeliest tokens after a prompt with their ids, as many as it takes until those wanted are among
  them (llama.cpp). Asked for only where there is no other way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import httpx2

from udr.errors import PromptTooLong, ScorerUnavailable

__all__ = ["FEATURES", "Endpoint", "Failure", "Read"]

FEATURES = ("logprob_token_ids", "prompt_logprobs", "echo", "generative_scoring", "top_logprobs")
LIKELIEST = (64, 1024, 16384, 2**20)  # tokens asked for in turn; the last is more than any vocabulary holds
CONNECTING = 5.0  # seconds
TOO_LONG = ("context length", "context size", "too long", "max_model_len")  # in what servers say of such prompts
LEAST = -1e4  # nats; what some servers write where they mean that there is no number


class Read(NamedTuple):
    """One question to a server.

    Without `whole`: the log-probability of each target after `ids`. With it: that of the targets one after another, as
    they stand at the end of `ids`.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    whole: bool = False


class Failure(Exception):
    """An attempt that may go well when it is made again.

    A `busy` server has too much to do (`wait`: for so many seconds, if it says so), a `silent` one may be gone, and a
    `garbled` answer is one that cannot be read.
    """

    def __init__(
        self, message: str, kind: Literal["busy", "silent", "garbled"] = "garbled", wait: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.wait = wait


class Endpoint:
    """One server; every method makes one attempt."""

    def __init__(self, url: str, *, timeout: float = 120.0, key: str = "", connections: int = 64) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = ""  # the name it is served by
        self.offers: frozenset[str] = frozenset()
        try:
            address = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ScorerUnavailable(f"{self.url}: not a server's address ({error})") from None
        self._client = httpx2.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=CONNECTING),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # a proxy of the machine's is no way to a server beside it
        )

    def close(self) -> None:
        self._client.close()

    # -- what it is

    def models(self) -> list[dict[str, Any]]:
        """The models it serves, as /v1/models tells them."""
        rows = self._ask("GET", "/v1/models").get("data")
        if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("id"), str) for r in rows):
            raise ScorerUnavailable(f"{self.url}: /v1/models is not that of an OpenAI-compatible server")
        return rows

    def tokenize(self, text: str) -> list[int] | None:
        """The server's own token ids of a text; None where it does not tell them."""
        try:
            # vLLM and SGLang read `prompt`, llama.cpp the other two
            body = {"model": self.model, "prompt": text, "content": text, "add_special": True}
            found = self._ask("POST", "/tokenize", body)
        except (ScorerUnavailable, Failure):
            return None
        tokens = found.get("tokens")
        return tokens if isinstance(tokens, list) and all(isinstance(t, int) for t in tokens) else None

    def detect(self, ids: Sequence[int]) -> frozenset[str]:
        """Ask for the log-probability of the last of `ids` in each way, and keep those that answer with a number."""
        *before, last = ids
        ways: dict[str, Callable[[], object]] = {
            "logprob_token_ids": lambda: self._next([Read(tuple(before), (last, before[-1]))]),
            "prompt_logprobs": lambda: self._prompt_logprobs([Read(tuple(ids), (last,), True)]),
            "echo": lambda: self._echo([Read(tuple(ids), (last,), True)]),
            "generative_scoring": lambda: self._generative_scoring([Read(tuple(before), (last,))]),
            "top_logprobs": lambda: self._top_logprobs([Read(tuple(before), (last,))]),
        }
        offers: set[str] = set()
        for name, way in ways.items():
            if name == "top_logprobs" and offers:
                continue
            try:
                way()
            except (ScorerUnavailable, Failure):
                continue
            offers.add(name)
        self.offers = frozenset(offers)
        return self.offers

    # -- one attempt

    def read(self, reads: Sequence[Read]) -> list[list[float]]:
        """Log-probabilities of each read's targets, nats; the reads are all whole or all share their targets.

        Raises:
            Failure: the attempt may be made again, here or elsewhere.
            ScorerUnavailable: the server will not do it.
            PromptTooLong: it is longer than the server reads.
        """
        if reads[0].whole:
            return self._prompt_logprobs(reads) if "prompt_logprobs" in self.offers else self._echo(reads)
        ways = {"logprob_token_ids": self._next, "generative_scoring": self._generative_scoring}
        return next((way for name, way in ways.items() if name in self.offers), self._top_logprobs)(reads)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """What the server writes after each prompt, greedily, up to the first newline."""
        choices = self._complete(prompts, max_tokens=max_new_tokens, stop=["\n"])
        if not all(isinstance(c.get("text"), str) for c in choices):
            raise Failure(f"{self.url}: an answer without text")
        return [c["text"] for c in choices]

    def _next(self, reads: Sequence[Read]) -> list[list[float]]:
        targets = reads[0].targets
        more = {"logprobs": 1, "logprob_token_ids": list(targets), "return_tokens_as_token_ids": True}
        choices = self._complete([r.ids for r in reads], max_tokens=1, **more)
        found = []
        for choice in choices:
            (row,) = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
            found.append([self._number(row.get(f"token_id:{t}")) for t in targets])
        return found

    def _prompt_logprobs(self, reads: Sequence[Read]) -> list[list[float]]:
        choices = self._complete([r.ids for r in reads], max_tokens=1, prompt_logprobs=0)
        found = []
        for read, choice in zip(reads, choices, strict=True):
            rows = choice.get("prompt_logprobs")
            if not isinstance(rows, list) or len(rows) != len(read.ids):
                raise Failure(f"{self.url}: prompt_logprobs of {len(rows or ())} tokens, asked for {len(read.ids)}")
            last = zip(rows[-len(read.targets) :], read.targets, strict=True)
            found.append([self._number(((row or {}).get(str(t)) or {}).get("logprob")) for row, t in last])
        return found

    def _echo(self, reads: Sequence[Read]) -> list[list[float]]:
        choices = self._complete([r.ids for r in reads], max_tokens=1, echo=True, logprobs=1)
        found = []
        for read, choice in zip(reads, choices, strict=True):
            values = (choice.get("logprobs") or {}).get("token_logprobs")
            if not isinstance(values, list) or len(values) not in (len(read.ids), len(read.ids) + 1):
                raise Failure(f"{self.url}: echo gives {len(values or ())} tokens, asked for {len(read.ids)}")
            start = len(read.ids) - len(read.targets)
            found.append([self._number(v) for v in values[start : len(read.ids)]])
        return found

    def _generative_scoring(self, reads: Sequence[Read]) -> list[list[float]]:
        columns = []
        for target in reads[0].targets:
            by_query: dict[tuple[int, ...], list[int]] = {}
            for i, read in enumerate(reads):
                by_query.setdefault(read.ids[:-1], []).append(i)
            column = [0.0] * len(reads)
            for query, rows in by_query.items():
                items = [[reads[i].ids[-1]] for i in rows]
                body: dict[str, Any] = {"model": self.model, "query": list(query), "items": items}
                body |= {"label_token_ids": [target], "apply_softmax": False, "item_first": False}
                data = self._ask("POST", "/generative_scoring", body).get("data")
                if not isinstance(data, list) or len(data) != len(rows):
                    raise Failure(f"{self.url}: generative scoring of {len(data or ())} items, asked for {len(rows)}")
                for i, row in zip(rows, data, strict=True):
                    share = row.get("score") if isinstance(row, dict) else None
                    column[i] = self._number(math.log(share) if isinstance(share, float | int) and share > 0 else None)
            columns.append(column)
        return [list(row) for row in zip(*columns, strict=True)]

    def _top_logprobs(self, reads: Sequence[Read]) -> list[list[float]]:
        found: list[dict[int, Any]] = [{} for _ in reads]
        for count in LIKELIEST:
            short = [i for i, read in enumerate(reads) if any(t not in found[i] for t in read.targets)]
            if not short:
                break
            choices = self._complete([reads[i].ids for i in short], max_tokens=1, logprobs=count)
            for i, choice in zip(short, choices, strict=True):
                (position, *_) = (choice.get("logprobs") or {}).get("content") or [{}]
                rows = position.get("top_logprobs") or []
                found[i] = {row["id"]: row.get("logprob") for row in rows if isinstance(row.get("id"), int)}
        return [[self._number(own.get(t)) for t in read.targets] for read, own in zip(reads, found, strict=True)]

    def _number(self, value: Any) -> float:
        """A log-probability.

        Raises:
            Failure: it is missing, or no number that can be one.
        """
        if isinstance(value, bool) or not isinstance(value, float | int) or not LEAST < value < 1e-3:
            raise Failure(f"{self.url}: {value} is no log-probability")
        return min(float(value), 0.0)

    def _complete(self, prompts: Sequence[Sequence[int]], **parameters: Any) -> list[dict[str, Any]]:
        body = {"model": self.model, "prompt": [list(p) for p in prompts], "temperature": 0.0, **parameters}
        choices = self._ask("POST", "/v1/completions", body).get("choices")
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise Failure(f"{self.url}: an answer without choices")
        by_index = {c.get("index"): c for c in choices}
        if set(by_index) != set(range(len(prompts))):
            raise Failure(f"{self.url}: {len(choices)} answers, asked for {len(prompts)}")
        return [by_index[i] for i in range(len(prompts))]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx2.TimeoutException:
            raise Failure(f"{self.url}: no answer in time", "silent") from None
        except httpx2.TransportError as error:
            raise Failure(f"{self.url}: {error or type(error).__name__}", "silent") from None
        except (httpx2.InvalidURL, ValueError) as error:
            raise ScorerUnavailable(f"{self.url}: not a server's address ({error})") from None
        if answer.status_code in (408, 425, 429, 503):
            raise Failure(f"{self.url}: {_reason(answer)}", "busy", _seconds(answer))
        if answer.status_code >= 500:
            raise Failure(f"{self.url}: {_reason(answer)}", "silent")
        if answer.status_code >= 400:
            reason = _reason(answer)
            if any(words in reason for words in TOO_LONG):
                raise PromptTooLong(f"{self.url}: {reason}")
            raise ScorerUnavailable(f"{self.url}{path}: {reason}")
        try:
            found = answer.json()
        except ValueError:
            raise Failure(f"{self.url}: an answer that is no JSON") from None
        if not isinstance(found, dict):
            raise Failure(f"{self.url}: an answer that is no JSON object")
        return found


def _reason(answer: httpx2.Response) -> str:
    """The status and what the server says of it, in one line."""
    try:
        said = json.loads(answer.text)
        said = said.get("error", said.get("detail", said)) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except ValueError:
        said = answer.text
    return f"{answer.status_code} {' '.join(str(said).split())[:300]}".rstrip()


def _seconds(answer: httpx2.Response) -> float | None:
    """Retry-After, where it is a number."""
    try:
        return max(0.0, float(answer.headers.get("retry-after", "")))
    except ValueError:
        return None

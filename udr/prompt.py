"""Text the LM reads: one rendering for scoring, retrieval and the finished prompt, and the exact token budget."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from udr.errors import PromptTooLong
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Dropped, Media, Prompt, Query, Tokenizer

__all__ = ["as_messages", "build_prompt", "for_encoder", "rearrange", "render", "render_demonstration", "render_query"]

_IN_VAIN = 2_000_000  # characters read of what did not fit, after which the rest is not tried: some second
_TRIES = 16  # that did not fit and are tried all the same
_PACKED = 16  # characters of a token, far more than tokenizers reach: more of them are not tried together
_SOUND = re.compile(r"data:audio/(?:x-)?([\w.+-]+)(?:;[^,;]+)*;base64,", re.IGNORECASE)
_FORMATS = {"mpeg": "mp3", "wave": "wav", "vnd.wave": "wav"}  # as OpenAI's API calls them


def render_demonstration(spec: TaskSpec, demonstration: Demonstration) -> str:
    """`x' TAB answer-template(y')`, as the LM sees a solved example (Li et al. 2023, section 3)."""
    template = spec.template
    answer = template.answer.replace("%s", spec.verbalise(demonstration.output))
    return f"{template.input_prefix}{demonstration.input}{template.separator}{answer}"


def render_query(spec: TaskSpec, query: Query) -> str:
    """`x TAB answer-prefix`: the text whose continuation is the answer."""
    template = spec.template
    return f"{template.input_prefix}{query.input}{template.separator}{template.answer_prefix}"


def render(spec: TaskSpec, demonstrations: Sequence[Demonstration], query: Query) -> str:
    """Demonstrations in the given order, then the query, put together by the task's joiner."""
    parts = [*(render_demonstration(spec, d) for d in demonstrations), render_query(spec, query)]
    return spec.template.joiner.join(parts)


def as_messages(spec: TaskSpec, demonstrations: Sequence[Demonstration], query: Query) -> list[dict[str, Any]]:
    """The same as chat messages: each demonstration is a user's turn and the assistant's, the query the last turn.

    Pictures and sounds stand before their text, as parts of the turn in the form of OpenAI's API, and clips in vLLM's.
    A sound that is an address, which that form does not know, is left out.
    """
    messages = []
    for d in demonstrations:
        answer = spec.template.answer.replace("%s", spec.verbalise(d.output))
        messages.append({"role": "user", "content": _content(spec, d.input, d.media)})
        messages.append({"role": "assistant", "content": answer})
    return [*messages, {"role": "user", "content": _content(spec, query.input, query.media)}]


def _content(spec: TaskSpec, text: str, media: Sequence[Media]) -> str | list[dict[str, Any]]:
    text = f"{spec.template.input_prefix}{text}"
    kinds = {"image": "image_url", "video": "video_url"}
    parts: list[dict[str, Any]] = []
    for m in media:
        if name := kinds.get(m.kind):
            parts.append({"type": name, name: {"url": m.address}})
        elif sound := _SOUND.match(m.address):
            form = _FORMATS.get(sound[1].lower(), sound[1].lower())
            parts.append({"type": "input_audio", "input_audio": {"data": m.address[sound.end() :], "format": form}})
    if parts and not text:
        return parts
    return [*parts, {"type": "text", "text": text}] if parts else text


def for_encoder(spec: TaskSpec, demonstrations: Sequence[Demonstration], encoder: object) -> list[Demonstration]:
    """The same demonstrations with the output as `encoder` reads it: the answer prefix and the verbalised y', or none.

    An encoder that states no `read_outputs` reads those of all tasks.
    """
    if spec.kind == "generation" and getattr(encoder, "read_outputs", "all") == "options":
        return [replace(d, output="") for d in demonstrations]
    prefix = spec.template.answer_prefix
    return [replace(d, output=prefix + spec.verbalise(d.output)) for d in demonstrations]


def build_prompt(
    spec: TaskSpec,
    query: Query,
    ranked: Sequence[Demonstration],
    tokenizer: Tokenizer,
    budget: int,
    *,
    k: int | None = None,
    reserve: int = 0,
) -> Prompt:
    """Take demonstrations, best first, while they fit; one that does not fit is skipped and the next one tried.

    Several are tried at once: where the best ones fit together, which one count tells, they are the prompt; where they
    do not, half as many are tried, and twice as many where they do. After many that did not fit, of as much text as
    takes a tokenizer a second, the rest is not tried.

    The whole text is counted by the LM's own tokenizer, separators and BOS-free, so `tokens + reserve ≤ budget`
    holds exactly. `reserve` keeps room for the answer. `k` bounds how many are taken; None takes all that fit.

    Raises:
        PromptTooLong: the query alone exceeds the budget.
    """
    most = len(ranked) if k is None else min(k, len(ranked))
    lengths = [0, *accumulate(len(d.input) + len(d.output) for d in ranked)]
    taken: list[Demonstration] = []
    dropped: list[Dropped] = []
    text, tokens = None, 0
    start, several, in_vain = 0, most, 0
    while start < len(ranked) and len(taken) < most and (in_vain < _IN_VAIN or len(dropped) < _TRIES):
        fitting = bisect_right(lengths, lengths[start] + _PACKED * budget) - 1 - start
        several = max(1, min(several, fitting, most - len(taken), len(ranked) - start))
        trial = [*ranked[start : start + several][::-1], *taken]  # the best one stands next to the query
        trial_text = render(spec, trial, query)
        trial_tokens = len(tokenizer.encode(trial_text))
        if trial_tokens + reserve <= budget:
            taken, text, tokens = trial, trial_text, trial_tokens
            start, several = start + several, 2 * several
            continue
        in_vain += len(trial_text)
        if text is None:
            text, tokens = _alone(spec, query, tokenizer, budget, reserve)
        if several == 1:
            need, left = trial_tokens - tokens, budget - reserve - tokens
            dropped.append(Dropped(ranked[start].id, f"needs {need} tokens, {left} left of {budget}", need))
            start += 1
        several = max(1, several // 2)
    if text is None:
        text, tokens = _alone(spec, query, tokenizer, budget, reserve)
    return Prompt(text, tuple(taken), tuple(dropped), tokens, budget)


def _alone(spec: TaskSpec, query: Query, tokenizer: Tokenizer, budget: int, reserve: int) -> tuple[str, int]:
    """The query without a demonstration, and its tokens.

    Raises:
        PromptTooLong: it exceeds the budget.
    """
    text = render(spec, [], query)
    tokens = len(tokenizer.encode(text))
    if tokens + reserve > budget:
        raise PromptTooLong(
            f"query {query.id}: {tokens} tokens and {reserve} for the answer exceed the budget of {budget}; "
            "raise the token budget or shorten the input"
        )
    return text, tokens


def rearrange(
    spec: TaskSpec,
    query: Query,
    prompt: Prompt,
    demonstrations: Sequence[Demonstration],
    tokenizer: Tokenizer,
    reserve: int = 0,
) -> Prompt:
    """The same demonstrations in another order, and their text counted anew.

    Raises:
        PromptTooLong: tokens merge differently at the new borders and the text no longer fits (by a token or two).
    """
    text = render(spec, demonstrations, query)
    tokens = len(tokenizer.encode(text))
    if tokens + reserve > prompt.budget:
        raise PromptTooLong(f"query {query.id}: {tokens} tokens in this order, the budget is {prompt.budget - reserve}")
    return replace(prompt, text=text, demonstrations=tuple(demonstrations), tokens=tokens)

"""Prompts: the text, the exact count of tokens, and what was left out and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.errors import DataError, PromptTooLong
from udr.fakes import FakeEncoder, FakeLM
from udr.mixture import MixedEncoder
from udr.prompt import (
    as_messages,
    build_prompt,
    for_encoder,
    rearrange,
    render,
    render_demonstration,
    render_query,
)
from udr.tasks.spec import TaskSpec, Template
from udr.types import Demonstration, Encoder, Media, Prompt, Query

LM = FakeLM()
WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


class Merging:
    """A tokenizer in which a newline and the letter after it are one token, as real ones merge over borders."""

    def encode(self, text: str) -> list[int]:
        return [len(piece) for piece in re.findall(r"\n.|.|\n", text)]


def demonstration(name: str, words: int) -> Demonstration:
    return Demonstration(name, " ".join(WORDS[i % 7] for i in range(words)), "yes")


def test_a_demonstration_reads_input_tab_answer_in_the_words_of_the_task(sentiment: TaskSpec) -> None:
    assert render_demonstration(sentiment, Demonstration("1", "a joy", "1")) == "a joy\tIt was great ."


def test_a_query_ends_where_its_answer_would_begin(sentiment: TaskSpec) -> None:
    assert render_query(sentiment, Query("1", "a bore")) == "a bore\tIt was "


def test_prefix_separator_and_joiner_of_the_template_are_used() -> None:
    template = Template(input_prefix="Q: ", separator="\nA: ", answer="%s!", joiner="\n\n")
    spec = TaskSpec(name="t", family="f", kind="generation", metric="exact_match", template=template)
    rendered = render(spec, [Demonstration("1", "x", "100% y"), Demonstration("2", "x2", "y2")], Query("3", "x3"))
    assert rendered == "Q: x\nA: 100% y!\n\nQ: x2\nA: y2!\n\nQ: x3\nA: "


def test_a_label_outside_the_verbaliser_cannot_be_rendered(sentiment: TaskSpec) -> None:
    with pytest.raises(DataError, match="label '7' is not in the verbaliser"):
        render_demonstration(sentiment, Demonstration("1", "x", "7"))


def test_the_encoder_reads_the_answer_prefix_and_the_word_of_the_label(sentiment: TaskSpec) -> None:
    (read,) = for_encoder(sentiment, [Demonstration("1", "a joy", "1", references=("0",))], FakeEncoder(8))
    assert read == Demonstration("1", "a joy", "It was great", references=("0",))


@pytest.mark.parametrize("kind", ["multichoice", "generation"])
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: MixedEncoder(e, FakeEncoder(8), 1.0, 1.0)])
def test_outputs_of_free_text_are_left_out_for_an_encoder_that_does_not_read_them(
    kind: Any, wrap: Callable[[Encoder], Encoder]
) -> None:
    spec = TaskSpec(name="t", family="custom", kind=kind, metric="exact_match", template=Template(answer="A: %s."))
    rows = [Demonstration("1", "x", "yes", choices=("yes", "no"))]
    every, some = FakeEncoder(8), FakeEncoder(8)
    some.read_outputs = "options"  # type: ignore[attr-defined]
    assert for_encoder(spec, rows, wrap(every))[0].output == "A: yes"
    assert for_encoder(spec, rows, wrap(some))[0].output == ("" if kind == "generation" else "A: yes")


def test_the_best_demonstration_stands_next_to_the_query(copying: TaskSpec) -> None:
    best, middle, last = (Demonstration(n, n, n.upper()) for n in ("best", "middle", "last"))
    prompt = build_prompt(copying, Query("q", "query"), [best, middle, last], LM, 100)
    assert prompt.text == "last\tLAST\nmiddle\tMIDDLE\nbest\tBEST\nquery\t"
    assert prompt.demonstrations == (last, middle, best)
    assert not prompt.truncated


def test_one_that_does_not_fit_is_skipped_and_the_next_one_tried(copying: TaskSpec) -> None:
    ranked = [demonstration("short", 2), demonstration("long", 40), demonstration("short too", 2)]
    prompt = build_prompt(copying, Query("q", "one"), ranked, LM, 20)
    assert [d.id for d in prompt.demonstrations] == ["short too", "short"]
    (dropped,) = prompt.dropped
    assert dropped.demonstration_id == "long"
    assert dropped.tokens == len(LM.encode(render_demonstration(copying, ranked[1]) + "\n")) == 82
    assert dropped.reason == "needs 82 tokens, 12 left of 20"
    assert prompt.truncated


def test_k_bounds_how_many_are_taken_and_drops_nothing_more(copying: TaskSpec) -> None:
    ranked = [demonstration(str(i), 2) for i in range(5)]
    prompt = build_prompt(copying, Query("q", "one"), ranked, LM, 1000, k=2)
    assert [d.id for d in prompt.demonstrations] == ["1", "0"]
    assert prompt.dropped == ()
    assert build_prompt(copying, Query("q", "one"), ranked, LM, 1000, k=0).demonstrations == ()


def test_room_for_the_answer_is_kept_free(copying: TaskSpec) -> None:
    ranked = [demonstration("a", 2)]
    whole = build_prompt(copying, Query("q", "one"), ranked, LM, 100).tokens
    assert build_prompt(copying, Query("q", "one"), ranked, LM, whole + 5, reserve=5).demonstrations
    assert not build_prompt(copying, Query("q", "one"), ranked, LM, whole + 5, reserve=6).demonstrations


def test_a_query_that_exceeds_the_budget_alone_is_refused(copying: TaskSpec) -> None:
    query = Query("q7", "one two three")
    assert build_prompt(copying, query, [], LM, 8, reserve=2).tokens == 6
    with pytest.raises(PromptTooLong, match="query q7: 6 tokens and 3 for the answer exceed the budget of 8"):
        build_prompt(copying, query, [], LM, 8, reserve=3)


@given(
    st.lists(st.integers(1, 12), max_size=6),
    st.integers(8, 80),
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(0, 4)),
    st.sampled_from([LM, Merging()]),
)
def test_tokens_are_exact_and_never_above_the_budget(
    sizes: list[int], budget: int, reserve: int, k: int | None, tokenizer: FakeLM
) -> None:
    spec = TaskSpec(name="t", family="f", kind="generation", metric="exact_match")
    query = Query("q", "one")
    ranked = [demonstration(str(i), n) for i, n in enumerate(sizes)]
    try:
        prompt = build_prompt(spec, query, ranked, tokenizer, budget, k=k, reserve=reserve)
    except PromptTooLong:
        assert len(tokenizer.encode("one\t")) + reserve > budget
        return
    assert prompt.text == render(spec, prompt.demonstrations, query)
    assert prompt.tokens == len(tokenizer.encode(prompt.text)) <= budget - reserve
    names = [d.id for d in prompt.demonstrations]
    assert names == sorted(names, key=int, reverse=True)
    left_out = [d.demonstration_id for d in prompt.dropped]
    assert not set(names) & set(left_out)
    if k is None:  # each one was tried
        assert sorted(names + left_out) == sorted(d.id for d in ranked)
    else:
        assert len(names) <= k
    for d in prompt.dropped:  # and would not have fitted beside those better than it
        better = [ranked[int(n)] for n in names if int(n) < int(d.demonstration_id)]
        trial = render(spec, [ranked[int(d.demonstration_id)], *better], query)
        assert len(tokenizer.encode(trial)) > budget - reserve


class Counting:
    """Counts words, and how often and how much it was asked to read."""

    def __init__(self) -> None:
        self.calls, self.characters = 0, 0

    def encode(self, text: str) -> list[int]:
        self.calls, self.characters = self.calls + 1, self.characters + len(text)
        return LM.encode(text)


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(8, 300), st.one_of(st.none(), st.integers(0, 30)))
def test_several_at_once_are_those_that_one_after_another_would_be(
    sizes: list[int], budget: int, k: int | None
) -> None:
    spec = TaskSpec(name="t", family="f", kind="generation", metric="exact_match")
    ranked = [demonstration(str(i), n) for i, n in enumerate(sizes)]
    taken: list[Demonstration] = []
    dropped = []
    for d in ranked:
        if len(taken) == k:
            break
        if len(LM.encode(render(spec, [d, *taken], Query("q", "one")))) <= budget:
            taken.insert(0, d)
        else:
            dropped.append(d.id)
    prompt = build_prompt(spec, Query("q", "one"), ranked, LM, budget, k=k)
    assert list(prompt.demonstrations) == taken
    assert [d.demonstration_id for d in prompt.dropped] == dropped


def test_a_prompt_of_thousands_is_put_together_in_few_counts(copying: TaskSpec) -> None:
    query, many = Query("q", "one"), [demonstration(str(i), 5) for i in range(2000)]
    whole = Counting()
    assert len(build_prompt(copying, query, many, whole, 1_000_000, k=1000).demonstrations) == 1000
    assert whole.calls == 1
    some = Counting()
    prompt = build_prompt(copying, query, [*many[:1000], *[demonstration("x", 500)] * 5, *many[1000:]], some, 12_000)
    assert 900 < len(prompt.demonstrations) < 1100
    assert some.calls < 300
    wide = Counting()
    build_prompt(copying, query, [demonstration(str(i), 20_000) for i in range(2000)], wide, 2048, k=1000)
    assert wide.characters < 4_000_000


def test_another_order_is_counted_anew(copying: TaskSpec) -> None:
    query = Query("q", "one")
    prompt = build_prompt(copying, query, [demonstration("a", 1), demonstration("b", 3)], LM, 100)
    turned = rearrange(copying, query, prompt, prompt.demonstrations[::-1], LM)
    assert turned.text == render(copying, prompt.demonstrations[::-1], query)
    assert (turned.tokens, turned.budget, turned.dropped) == (prompt.tokens, 100, ())


def test_an_order_that_no_longer_fits_is_refused(copying: TaskSpec) -> None:
    pair = (demonstration("a", 3), demonstration("b", 3))
    prompt = Prompt("", pair, (), 0, 10)
    with pytest.raises(PromptTooLong, match="query q: 18 tokens in this order, the budget is 10"):
        rearrange(copying, Query("q", "one"), prompt, pair, LM)


def test_a_sound_stands_in_a_chat_as_openai_wants_it_and_an_address_does_not(copying: TaskSpec) -> None:
    sounds = (Media("audio", "data:audio/x-wav;base64,AAAA"), Media("audio", "http://x/a.wav"))
    (turn,) = as_messages(copying, [], Query("q", "what is this?", media=sounds))
    spoken = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    assert turn["content"] == [spoken, {"type": "text", "text": "what is this?"}]
    assert as_messages(copying, [], Query("q", "", media=sounds))[0]["content"] == [spoken]
    for kind, form in (("mpeg", "mp3"), ("Ogg;codecs=opus", "ogg"), ("vnd.wave", "wav")):
        (part,) = as_messages(copying, [], Query("q", "", media=(Media("audio", f"data:audio/{kind};base64,AA"),)))
        assert part["content"][0]["input_audio"] == {"data": "AA", "format": form}
    assert as_messages(copying, [], Query("q", "words", media=sounds[1:]))[0]["content"] == "words"

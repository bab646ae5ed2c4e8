"""Causal LMs: the token tree against one plain forward a prompt, and generation against a plain greedy loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from udr.errors import ConfigError, PromptTooLong, ScorerUnavailable
from udr.scoring.causal_lm import CausalLM, build_causal_lm
from udr.scoring.token_tree import TokenRow

KINDS = ["gemma3", "llama", "gpt2"]
WORDS = ["the", "film", "was", "a", "joy", "bank", "fell", "on", "friday", "striker", "scored", "good", "bad", "chip"]
MakeLM = Callable[..., CausalLM]


def random_requests(seed: int, count: int = 24) -> tuple[list[str], list[str]]:
    """Requests as mining makes them: few demonstrations, several queries each, labels of one or more tokens."""
    rng = np.random.default_rng(seed)
    phrase = lambda low, high: " ".join(rng.choice(WORDS, size=rng.integers(low, high)))  # noqa: E731
    demonstrations = [f"{phrase(2, 24)}\tIt was {rng.choice(['great', 'bad'])} ." for _ in range(3)]
    contexts, continuations = [], []
    while len(contexts) < count:
        context = f"{demonstrations[rng.integers(3)]}\n{phrase(1, 8)}\tIt was "
        for label in ("great", "terrible", "not so bad"):
            contexts.append(context)
            continuations.append(label)
    contexts += ["", " ", "\n", contexts[0]]
    continuations += ["great", "great", "a joy", continuations[0]]  # no context at all, and one request twice
    return contexts, continuations


def plain_loglikelihood(lm: CausalLM, contexts: Sequence[str], continuations: Sequence[str]) -> np.ndarray:
    """One forward a prompt: no tree, no masks, no positions given."""
    nats = []
    for context, continuation in zip(contexts, continuations, strict=True):
        start, end = lm.tokens.token_ids(context, continuation)
        start = start or [lm.tokenizer.bos_token_id]
        with torch.inference_mode():
            logs = lm.model(input_ids=torch.tensor([start + end])).logits[0].log_softmax(-1)
        nats.append(sum(float(logs[len(start) - 1 + i, token]) for i, token in enumerate(end)))
    return np.array(nats)


def plain_greedy(lm: CausalLM, prompt: str, max_new_tokens: int) -> str:
    """The most likely token again and again; stop at a newline or the end mark."""
    ids = lm.tokens.prefix_ids + lm.encode(prompt.rstrip(" ")) or [lm.tokenizer.bos_token_id]
    start = len(ids)
    while len(ids) - start < max_new_tokens:
        with torch.inference_mode():
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id or "\n" in lm.tokenizer.decode(ids[-1:]):
            break
    return str(lm.tokenizer.decode(ids[start:], skip_special_tokens=True)).lstrip(" ").split("\n")[0].strip()


# log-likelihoods


@pytest.mark.parametrize("row_tokens", [16, 64, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_the_token_tree_gives_the_numbers_of_one_forward_a_prompt(make_lm: MakeLM, kind: str, row_tokens: int) -> None:
    lm = make_lm(kind, row_tokens=row_tokens)
    assert lm.tree
    contexts, continuations = random_requests(seed=row_tokens)
    longest = max(len(lm.encode(c)) for c in contexts)
    assert longest > 3 * 8  # prompts exceed Gemma's sliding window of 8
    found = lm.loglikelihood(contexts, continuations)
    expected = plain_loglikelihood(lm, contexts, continuations)
    np.testing.assert_allclose(found.nats, expected, atol=1e-4)
    assert np.ptp(expected[:-4:3]) > 0.5  # the answers depend on the prompt, so a wrong mask would show
    assert found.tokens.tolist() == [
        len(lm.tokens.token_ids(a, b)[1]) for a, b in zip(contexts, continuations, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_tree_the_numbers_are_the_same_and_cost_more_tokens(make_lm: MakeLM, kind: str) -> None:
    tree, alone = make_lm(kind, row_tokens=512), make_lm(kind, tree=False)
    contexts, continuations = random_requests(seed=1)
    before = tree.tokens_computed, alone.tokens_computed
    found = tree.loglikelihood(contexts, continuations), alone.loglikelihood(contexts, continuations)
    np.testing.assert_allclose(found[0].nats, found[1].nats, atol=1e-4)
    assert 3 * (tree.tokens_computed - before[0]) < alone.tokens_computed - before[1]


def test_a_probability_over_all_single_tokens_sums_to_one(make_lm: MakeLM) -> None:
    lm = make_lm("gpt2")
    words = [lm.tokenizer.decode([i]) for i in range(len(lm.tokenizer))]
    whole = [w for i, w in enumerate(words) if lm.encode(w) == [i]]
    nats = lm.loglikelihood(["the film was"] * len(whole), whole).nats
    assert 0.3 < np.exp(nats.astype(np.float64)).sum() <= 1 + 1e-5


def windowed(kind: str) -> Any:
    """Models whose every layer sees a window only, or that take no four-dimensional mask of bools."""
    from transformers import BloomConfig, Gemma2Config, GPTNeoConfig, MistralConfig, Qwen2Config

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    layers = {"num_hidden_layers": 2, "num_key_value_heads": 2}
    if kind == "mistral":
        return MistralConfig(sliding_window=32, **layers, **sizes)
    if kind == "qwen2":
        return Qwen2Config(use_sliding_window=True, sliding_window=32, max_window_layers=0, **layers, **sizes)
    if kind == "gemma2":
        return Gemma2Config(sliding_window=8, head_dim=8, query_pre_attn_scalar=8, **layers, **sizes)
    if kind == "bloom":  # its positions are made of the mask
        return BloomConfig(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, bos_token_id=1, eos_token_id=2)
    sizes["num_heads"] = sizes.pop("num_attention_heads")
    return GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]], window_size=8, **sizes)


def build(kind: str, tokenizer: Any, **settings: Any) -> CausalLM:
    from transformers import AutoModelForCausalLM

    config = windowed(kind)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(5)
    return CausalLM(AutoModelForCausalLM.from_config(config).float(), tokenizer, kind, **settings)


@pytest.mark.parametrize(("kind", "tree"), [("mistral", True), ("qwen2", True), ("gemma2", True), ("gpt_neo", False)])
def test_prompts_longer_than_the_window_are_scored_as_the_model_alone_would(
    make_lm: MakeLM, kind: str, tree: bool
) -> None:
    lm = build(kind, make_lm("llama").tokenizer, row_tokens=4096)
    assert lm.tree is tree
    contexts, continuations = random_requests(seed=2, count=12)
    assert max(len(lm.encode(c)) for c in contexts) > 32
    found = lm.loglikelihood(contexts, continuations).nats
    np.testing.assert_allclose(found, plain_loglikelihood(lm, contexts, continuations), atol=1e-4)


@pytest.mark.parametrize("head_alone", [True, False])
@pytest.mark.parametrize("row_tokens", [1, 64, 4096])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "bloom"])
def test_without_the_tree_prompts_of_like_length_are_read_side_by_side(
    make_lm: MakeLM, kind: str, row_tokens: int, head_alone: bool
) -> None:
    lm = make_lm("gpt2", tree=False, row_tokens=row_tokens)
    if kind != "gpt2":  # models that cannot read a tree
        lm = build(kind, make_lm("llama").tokenizer, row_tokens=row_tokens)
        assert not lm.tree
    if not head_alone:
        lm._head = None  # as of a model whose head cannot be asked alone
    contexts, continuations = random_requests(seed=row_tokens)
    passes: list[tuple[int, int]] = []
    run = lm._states

    def seen(row: TokenRow, keep: Any) -> torch.Tensor:
        passes.append((len(row.tokens) // row.width, row.width))
        return run(row, keep)

    lm._states = seen  # type: ignore[method-assign]
    before = lm.tokens_computed
    found = lm.loglikelihood(contexts, continuations).nats
    np.testing.assert_allclose(found, plain_loglikelihood(lm, contexts, continuations), atol=1e-4)
    assert sum(rows for rows, _ in passes) == len(contexts)
    assert all(rows * width <= row_tokens or rows == 1 for rows, width in passes)
    assert sum(rows * width for rows, width in passes) == lm.tokens_computed - before
    assert len(passes) == (len(contexts) if row_tokens == 1 else 1 if row_tokens == 4096 else len(passes))
    assert len(passes) < len(contexts) or row_tokens == 1


def test_the_tree_is_switched_off_for_a_model_that_would_answer_differently(
    make_lm: MakeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_lm("llama").model
    forward = model.model.forward
    # a model that passes the mask over
    monkeypatch.setattr(model.model, "forward", lambda **kwargs: forward(**{**kwargs, "attention_mask": None}))
    assert not CausalLM(model, make_lm("llama").tokenizer, "deaf").tree


def test_the_noise_of_bfloat16_does_not_switch_the_tree_off_and_a_wrong_mask_does(
    make_lm: MakeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_lm("llama")
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():  # a trained model's answers hang on its prompt far more than those of random weights
        model.get_output_embeddings().weight *= 8
    model = model.bfloat16()
    assert CausalLM(model, tiny.tokenizer, "half").tree
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **kwargs: forward(**{**kwargs, "attention_mask": None}))
    assert not CausalLM(model, tiny.tokenizer, "deaf").tree


@pytest.mark.parametrize("head_rows", [1, 7, 10**6])
@pytest.mark.parametrize("kind", KINDS)
def test_states_may_pass_the_vocabulary_head_in_any_number_together(make_lm: MakeLM, kind: str, head_rows: int) -> None:
    lm = make_lm(kind, row_tokens=32)
    assert lm._head is not None
    lm.head_rows = head_rows
    contexts, continuations = random_requests(seed=9)
    expected = plain_loglikelihood(lm, contexts, continuations)
    np.testing.assert_allclose(lm.loglikelihood(contexts, continuations).nats, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_whose_logits_are_capped_is_asked_through_the_whole_model(make_lm: MakeLM, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = make_lm("llama").tokenizer
    config = windowed("gemma2")
    config.vocab_size, config.final_logit_softcapping, config.initializer_range = len(tokenizer), 2.0, 1.0
    torch.manual_seed(5)
    lm = CausalLM(AutoModelForCausalLM.from_config(config).to(dtype), tokenizer, "capped")
    assert lm._head is None
    contexts, continuations = random_requests(seed=2, count=6)
    if dtype == torch.float32:
        expected = plain_loglikelihood(lm, contexts, continuations)
        np.testing.assert_allclose(lm.loglikelihood(contexts, continuations).nats, expected, atol=1e-4)


def test_no_requests_give_no_numbers(make_lm: MakeLM) -> None:
    found = make_lm("gpt2").loglikelihood([], [])
    assert found.nats.shape == found.tokens.shape == (0,)


def test_an_empty_continuation_is_refused(make_lm: MakeLM) -> None:
    with pytest.raises(ConfigError, match="request 1: the continuation has no tokens"):
        make_lm("gpt2").loglikelihood(["a", "b"], ["x", ""])


def test_a_request_longer_than_the_context_is_refused_and_none_is_cut(make_lm: MakeLM) -> None:
    lm = make_lm("llama")
    context = "the film" + " joy" * 300
    length = len(lm.tokens.token_ids(context, " great")[0])
    with pytest.raises(PromptTooLong, match=f"request 1: {length} \\+ 1 tokens, the LM reads 256"):
        lm.loglikelihood(["a", context], [" great", " great"])
    fitting = lm.tokenizer.decode(lm.encode(context)[:254])
    assert len(lm.tokens.token_ids(fitting, " great")[0]) == 255
    assert np.isfinite(lm.loglikelihood([fitting], [" great"]).nats).all()


# tokens


@pytest.mark.parametrize("kind", KINDS)
def test_context_and_continuation_are_tokenised_apart_and_nothing_is_lost(make_lm: MakeLM, kind: str) -> None:
    lm = make_lm(kind)
    for context, continuation in [("the film was\tIt was ", "great"), ("a", "b"), ("x\n", "yes"), ("a  ", "not bad .")]:
        start, end = lm.tokens.token_ids(context, continuation)
        assert start[: len(lm.tokens.prefix_ids)] == lm.tokens.prefix_ids
        assert start[len(lm.tokens.prefix_ids) :] == lm.encode(context.rstrip(" "))
        decode = lm.tokenizer.backend_tokenizer.decode
        assert decode(start[len(lm.tokens.prefix_ids) :] + end, skip_special_tokens=False) == context + continuation


@pytest.mark.parametrize("kind", KINDS)
def test_the_space_before_an_answer_belongs_to_the_answer(make_lm: MakeLM, kind: str) -> None:
    lm = make_lm(kind)
    joined = lm.tokenizer("It was great")["input_ids"]
    start, end = lm.tokens.token_ids("It was ", "great")
    assert start + end == joined
    assert (start, end) == lm.tokens.token_ids("It was", " great")
    assert len(end) == 1


@pytest.mark.parametrize(("kind", "prefix"), [("gemma3", [2]), ("llama", [1]), ("gpt2", [])])
def test_the_beginning_mark_is_what_the_tokenizer_puts_there(make_lm: MakeLM, kind: str, prefix: list[int]) -> None:
    lm = make_lm(kind)
    assert lm.tokens.prefix_ids == prefix
    assert lm.encode("the film")[:1] != prefix
    assert lm.context_length == 256


def test_a_tokenizer_that_also_puts_a_mark_behind_a_text_keeps_the_one_before_it(make_lm: MakeLM) -> None:
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    lm = make_lm("llama")
    backend = Tokenizer.from_str(lm.tokenizer.backend_tokenizer.to_str())
    marks = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    both = CausalLM(lm.model, tokenizer, "both")
    assert both.tokens.prefix_ids == [1]
    assert both.tokens.token_ids("the film was", " great") == lm.tokens.token_ids("the film was", " great")


def test_the_settings_of_a_model_that_also_reads_images_are_found_one_level_deeper(make_lm: MakeLM) -> None:
    lm = make_lm("gemma3")

    class Outer:
        """The configuration of a model of several modalities: the text's own stands inside."""

        def get_text_config(self) -> Any:
            return lm.model.config

    class Model:
        config = Outer()
        dtype, device = lm.model.dtype, lm.model.device

        def eval(self) -> Model:
            return self

        def set_attn_implementation(self, name: str) -> None:
            lm.model.set_attn_implementation(name)

        def __call__(self, **kwargs: Any) -> Any:
            return lm.model(**kwargs)

    other = CausalLM(Model(), lm.tokenizer, "outer")
    assert other.tree
    assert other.context_length == 256
    contexts, continuations = random_requests(seed=3, count=6)
    np.testing.assert_allclose(
        other.loglikelihood(contexts, continuations).nats, plain_loglikelihood(lm, contexts, continuations), atol=1e-4
    )


# generation

PROMPTS = ["the film was a joy\tIt was ", "a", "", "shares of the bank fell\nred fish\t", "one", "It was great ."]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_a_plain_greedy_loop(make_lm: MakeLM, kind: str) -> None:
    lm = make_lm(kind, generation_batch=4)
    expected = [plain_greedy(lm, p, 12) for p in PROMPTS]
    assert len(set(expected)) > 3
    assert lm.generate(PROMPTS, 12) == expected
    assert [lm.generate([p], 12)[0] for p in PROMPTS] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_at_the_end_mark_even_where_others_go_on(make_lm: MakeLM, kind: str) -> None:
    from transformers import PreTrainedTokenizerFast

    lm = make_lm(kind)
    with torch.inference_mode():
        ids = torch.tensor([lm.tokens.prefix_ids + lm.encode(PROMPTS[3])])
        own = lm.model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :].tolist()
    # let the third token of one answer be the end mark, and no token the padding
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=lm.tokenizer.backend_tokenizer,
        bos_token=lm.tokenizer.bos_token,
        eos_token=lm.tokenizer.convert_ids_to_tokens(own[2]),
    )
    stopping = CausalLM(lm.model, tokenizer, "stopping")
    expected = [plain_greedy(stopping, p, 12) for p in PROMPTS]
    assert expected[3] == lm.tokenizer.decode(own[:2], skip_special_tokens=True).strip()
    assert stopping.generate(PROMPTS, 12) == expected


def test_what_a_models_own_file_says_of_generation_does_not_change_the_greedy_answer(make_lm: MakeLM) -> None:
    from transformers import GenerationConfig

    lm = make_lm("gpt2")
    prompts = ["the film was a joy", "shares of the bank"]
    lm.model.generation_config = GenerationConfig(repetition_penalty=9.0, do_sample=True, num_beams=3)
    assert make_lm("gpt2").generate(prompts, 8) == [plain_greedy(lm, p, 8) for p in prompts]


def test_a_prompt_that_leaves_no_room_for_the_answer_is_refused(make_lm: MakeLM) -> None:
    with pytest.raises(PromptTooLong, match="prompt 1: 251 \\+ 6 tokens, the LM reads 256; lower the token budget or"):
        make_lm("gpt2").generate(["a", "a" + " a" * 250], 6)


# loading


def test_a_saved_model_is_loaded_with_the_same_scores_and_a_fingerprint_of_its_files(
    make_lm: MakeLM, tmp_path: Path
) -> None:
    lm = make_lm("gpt2")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    loaded = build_causal_lm(str(tmp_path), dtype="float32", device="cpu", row_tokens=99)
    assert loaded.row_tokens == 99
    contexts, continuations = random_requests(seed=4, count=6)
    np.testing.assert_allclose(
        loaded.loglikelihood(contexts, continuations).nats, lm.loglikelihood(contexts, continuations).nats, atol=1e-5
    )
    half = build_causal_lm(str(tmp_path), dtype="bfloat16", device="cpu")
    assert loaded.fingerprint.removesuffix("-float32") == half.fingerprint.removesuffix("-bfloat16")
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert build_causal_lm(str(tmp_path), dtype="float32", device="cpu").fingerprint != loaded.fingerprint


def test_a_model_that_knows_only_plain_attention_is_loaded(make_lm: MakeLM, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = windowed("gpt_neo")  # the paper's LM is of this family
    config.vocab_size = len(make_lm("llama").tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_lm("llama").tokenizer.save_pretrained(tmp_path)
    assert np.isfinite(build_causal_lm(str(tmp_path), device="cpu").loglikelihood(["a"], ["b"]).nats).all()


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScorerUnavailable, match="empty: cannot be loaded as a causal LM") as caught:
        build_causal_lm(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"lm\.dtype: 'int4' is not one of auto, float32, bfloat16, float16"):
        build_causal_lm("anything", dtype="int4")

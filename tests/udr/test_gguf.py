"""GGUF files: what can be told of a conversion without a model. The conversion itself is tested on the real one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from udr.scoring.causal_lm import CausalLM
from udr.scoring.gguf import check_words


@pytest.mark.parametrize("kind", ["gemma3", "llama", "gpt2"])
def test_a_tokenizer_that_spells_its_own_words_is_refused(make_lm: Callable[..., CausalLM], kind: str) -> None:
    tokenizer = make_lm(kind).tokenizer
    check_words(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"] = []
    spelling = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert len(spelling("film", add_special_tokens=False)["input_ids"]) >= 4
    with pytest.raises(ValueError, match="spells words letter by letter"):
        check_words(spelling)

"""Any causal LM of `transformers`, in process: log-likelihoods over token trees, and greedy answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig

from udr.devices import choose_device, fast_dtype
from udr.errors import ConfigError, ScorerUnavailable
from udr.scoring.model_config import context_length, model_fingerprint
from udr.scoring.token_tree import TokenRow, pack, pad, subtree_ends
from udr.scoring.tokens import LMTokenizer, load_tokenizer
from udr.scoring.vocabulary import log_probabilities
from udr.types import IntArray, LogLikelihoods

__all__ = ["CausalLM", "build_causal_lm"]

SHORT_ROW = 1024  # tokens; plain attention needs memory for their square
# on a CPU, whose caches are small, and on a GPU, which wants much work at once
ROW_TOKENS = (512, 2048)  # in one forward pass
HEAD_ROWS = (512, 1024)  # states that pass the vocabulary head together: fetching its weights is most of that
PROMPTS_PER_CALL = (128, 2048)
GENERATION_BATCH = (8, 32)
PROBES = 12  # prompts that show whether a model can read a token tree
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CausalLM:
    """A frozen language model that scores continuations and answers prompts.

    `row_tokens` bounds one forward pass and `generation_batch` the prompts answered together (none: what suits the
    device). `tree` shares common prefixes among the requests of a call (see `udr.scoring.token_tree`), and is switched
    off by itself for models whose answers would change: they read prompts of like length side by side.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        fingerprint: str,
        *,
        row_tokens: int | None = None,
        tree: bool = True,
        generation_batch: int | None = None,
    ) -> None:
        self.model = model.eval()
        # its own may ask for sampling or punish repetition, and a demonstration's words are there to be repeated
        self.model.generation_config = GenerationConfig()
        self.tokenizer = tokenizer
        self.tokens = LMTokenizer(tokenizer)
        on_gpu = model.device.type == "cuda"
        self.row_tokens = row_tokens or ROW_TOKENS[on_gpu]
        self.prompts_per_call = PROMPTS_PER_CALL[on_gpu]
        self.generation_batch = generation_batch or GENERATION_BATCH[on_gpu]
        self.tokens_computed = 0
        dtype = str(model.dtype).removeprefix("torch.")
        # scores of two devices differ in the last bits: they do not mix in one list
        self._fingerprint = f"{fingerprint}-{dtype}" + (f"-{model.device.type}" if model.device.type != "cpu" else "")
        self._own_attention: str = self._config._attn_implementation or "eager"
        self.head_rows = HEAD_ROWS[on_gpu]
        self._head = self._find_head()
        self.tree = tree and self._tree_agrees()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def _config(self) -> Any:
        """Settings of the language model, which stand one level deeper where it also reads images."""
        return self.model.config.get_text_config()

    @property
    def context_length(self) -> int:
        return int(context_length(self.model.config) or self.tokenizer.model_max_length)

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS."""
        return self.tokens.encode(text)

    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]:
        """The shortest beginnings that tell options apart behind `before`."""
        return self.tokens.beginnings(before, options)

    def count_tokens(self, contexts: Sequence[str], continuations: Sequence[str]) -> int:
        """Tokens that `loglikelihood` would compute."""
        return sum(len(row.tokens) for row in self._rows(*self._requests(contexts, continuations)))

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        """Score each continuation after its context: nats (n,) summed over its tokens, and their number (n,).

        Raises:
            ConfigError: an empty continuation.
            PromptTooLong: a request that exceeds the LM's context (names its number and length).
        """
        starts, ends = self._requests(contexts, continuations)
        requests: list[IntArray] = []

        def noted() -> Iterator[TokenRow]:
            for row in self._rows(starts, ends):
                requests.append(row.requests)
                yield row

        values = list(self._score_rows(noted()))  # left where they are: a GPU works while the next row is packed
        nats = np.zeros(len(ends), dtype=np.float32)
        if values:
            np.add.at(nats, np.concatenate(requests), torch.cat(values).cpu().numpy())
        return LogLikelihoods(nats, np.array([len(c) for c in ends], dtype=np.int64))

    def _requests(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        return self.tokens.requests(contexts, continuations, self.context_length)

    def _rows(self, starts: Sequence[list[int]], ends: Sequence[list[int]]) -> Iterator[TokenRow]:
        """Forward passes that share what the requests have in common, or hold them side by side."""
        return (pack if self.tree else pad)(starts, ends, self.row_tokens)

    @torch.inference_mode()
    def _score_rows(self, rows: Iterable[TokenRow]) -> Iterator[torch.Tensor]:
        """Log-probability of each target, float32 (s,) a row, on the model's device.

        The vocabulary head costs more than a small LM's body, and most of that is fetching its weights: several rows'
        states pass it together.
        """
        waiting: list[tuple[torch.Tensor, IntArray, TokenRow]] = []
        for row in rows:
            keep, place = np.unique(row.nodes, return_inverse=True)
            waiting.append((self._states(row, keep), place.reshape(-1), row))
            if sum(len(states) for states, _, _ in waiting) >= self.head_rows:
                yield from self._read(waiting)
                waiting = []
        if waiting:
            yield from self._read(waiting)

    def _states(self, row: TokenRow, keep: IntArray) -> torch.Tensor:
        """What the head reads at the places `keep`, (kept, d), or the logits there if it cannot be asked alone."""
        self._choose_attention(len(row.tokens))
        self.tokens_computed += len(row.tokens)
        inputs = {
            "input_ids": self._move(row.tokens).view(-1, row.width),
            "position_ids": self._move(row.depths).view(-1, row.width),
            "attention_mask": self._attention_mask(row),
            "use_cache": False,
        }
        if self._head is None:
            columns, column = np.unique(keep % row.width, return_inverse=True)
            logits = self.model(**inputs, logits_to_keep=self._move(columns)).logits
            kept: torch.Tensor = logits[self._move(keep // row.width), self._move(column.reshape(-1))]
            return kept
        states: torch.Tensor = self.model.base_model(**inputs).last_hidden_state
        return states.flatten(0, 1)[self._move(keep)]

    def _read(self, waiting: Sequence[tuple[torch.Tensor, IntArray, TokenRow]]) -> Iterator[torch.Tensor]:
        """The log-probabilities that some rows ask for."""
        starts = np.cumsum([0] + [len(states) for states, _, _ in waiting[:-1]])
        values = log_probabilities(
            torch.cat([states for states, _, _ in waiting]),
            self._head,
            np.concatenate([start + place for start, (_, place, _) in zip(starts, waiting, strict=True)]),
            np.concatenate([row.targets for _, _, row in waiting]),
        )
        yield from torch.split(values, [len(row.targets) for _, _, row in waiting])

    @torch.inference_mode()
    def _find_head(self) -> Any:
        """The vocabulary head, if it alone turns the body's states into the logits; some models scale or cap them."""
        ids = torch.arange(min(16, self._config.vocab_size), device=self.model.device)[None]
        try:
            head = self.model.get_output_embeddings()
            apart = head(self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
            logits = self.model(input_ids=ids, use_cache=False).logits
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
            return None
        return head if apart.shape == logits.shape and torch.allclose(apart, logits, rtol=1e-4, atol=1e-4) else None

    def _move(self, numbers: IntArray) -> torch.Tensor:
        """To the model's device, without waiting for the work that is under way there."""
        return torch.from_numpy(numbers).to(self.model.device, non_blocking=True)

    def _choose_attention(self, tokens: int) -> None:
        """Plain attention for short rows on a CPU, where it is a quarter faster; the fused kernel for all others."""
        wanted = "eager" if tokens <= SHORT_ROW and self.model.device.type == "cpu" else self._own_attention
        if self._config._attn_implementation != wanted:
            self.model.set_attn_implementation(wanted)

    def _attention_mask(self, row: TokenRow) -> Any:
        """The ancestor mask in the form the model takes; None where plain causal attention is the same."""
        if row.width < len(row.tokens) or (row.parents == np.arange(len(row.tokens)) - 1).all():
            return None  # whole prompts: the model's own mask knows its window
        kinds = set(getattr(self._config, "layer_types", None) or ())
        window = getattr(self._config, "sliding_window", None)
        full = self._as_mask(self._visible(row))
        if window is None or kinds == {"full_attention"}:
            return full
        sliding = self._as_mask(self._visible(row, window))
        if "full_attention" in kinds:
            return {"full_attention": full, "sliding_attention": sliding}
        return sliding

    def _visible(self, row: TokenRow, window: int | None = None) -> torch.Tensor:
        """Who may attend to whom, bool (r, r): a node sees itself and its ancestors, the last `window` tokens if given.

        Made where the model is: the mask would be the largest thing to move there.
        """
        place = torch.arange(len(row.tokens), device=self.model.device)
        mask = (place <= place[:, None]) & (place[:, None] < self._move(subtree_ends(row)))
        if window is not None:
            depths = self._move(row.depths)
            mask &= depths[:, None] - depths < window
        return mask

    def _as_mask(self, visible: torch.Tensor) -> torch.Tensor:
        """(1, 1, r, r): true where visible for the fused kernel, added to the scores for plain attention."""
        mask = visible[None, None]
        if self._config._attn_implementation != "eager":
            return mask
        hidden = torch.finfo(self.model.dtype).min
        return torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill_(~mask, hidden)

    def _tree_agrees(self) -> bool:
        """True when a small tree gives the same log-likelihoods as its prompts one by one.

        Models that build positions from the mask (ALiBi), or ignore a four-dimensional mask, answer differently.
        GPT-Neo's local layers count rows and not positions, which a small tree would not show.
        """
        if getattr(self._config, "attention_types", None):
            return False
        ids = [t for t in range(5, 25) if t < self._config.vocab_size] or [0, 1]
        contexts = [self.tokens.start_ids + ids[:6] + ids[k : k + 3] for k in range(PROBES)]
        ends = [[ids[(k + 1) % len(ids)], ids[0]] for k in range(PROBES)]
        try:
            together, alone = np.zeros(PROBES), np.zeros(PROBES)
            (row,) = pack(contexts, ends, 10_000)
            (values,) = self._score_rows([row])
            np.add.at(together, row.requests, values.cpu().numpy())
            for n, (context, end) in enumerate(zip(contexts, ends, strict=True)):
                alone[n] = sum(float(v.sum()) for v in self._score_rows(pack([context], [end], 99)))
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
            return False
        apart = np.abs(together - alone)
        if self.model.dtype == torch.float32:
            return bool(apart.max() < 1e-3)
        # rounding moves single numbers by a percent, and their mean by half of one; a wrong mask by tens
        return bool(apart.mean() < 0.02 * np.abs(alone).mean())

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Answer each prompt greedily up to the first newline; spaces at both ends are cut.

        Raises:
            PromptTooLong: a prompt that leaves no room for the answer.
        """
        ids = self.tokens.prompts(prompts, max_new_tokens, self.context_length)
        self._choose_attention(SHORT_ROW + 1)
        answers = [""] * len(prompts)
        by_length = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        for start in range(0, len(ids), self.generation_batch):
            chosen = by_length[start : start + self.generation_batch]
            width = max(len(ids[i]) for i in chosen)
            pad = self.tokenizer.pad_token_id or 0
            tokens = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in chosen], device=self.model.device)
            mask = torch.tensor(
                [[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in chosen], device=self.model.device
            )
            out = self.model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.tokens.stop_ids,
                pad_token_id=pad,
            )
            for i, row_ids in zip(chosen, out[:, width:], strict=True):
                answers[i] = self.tokens.answer(row_ids.tolist())
        return answers


def build_causal_lm(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str = "main",
    row_tokens: int | None = None,
) -> CausalLM:
    """Load a causal LM from a local folder or the hub.

    `auto` means the GPU if there is one, and bfloat16 where the device is fast at it (else float32).

    Raises:
        ConfigError: an unknown dtype.
        ScorerUnavailable: the model cannot be loaded.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"lm.dtype: {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    where = choose_device(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=DTYPES[fast_dtype(where) if dtype == "auto" else dtype]
        ).to(where)
    # the fifth is torch's without CUDA, the last a cut-off file's
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = ("" if Path(name).is_dir() else "no such folder; from the hub: ") + str(error).splitlines()[0]
        raise ScorerUnavailable(f"{name}: cannot be loaded as a causal LM ({reason})") from None
    tokenizer = load_tokenizer(name, revision).tokenizer
    return CausalLM(model, tokenizer, model_fingerprint(name, revision, model.config), row_tokens=row_tokens)

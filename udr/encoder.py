"""The bi-encoder: two towers over any sentence encoder, and the text Encoder it serves as."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from udr.artifacts import fingerprint_files, read_json, write_json
from udr.devices import choose_device, fast_dtype
from udr.errors import ArtifactError, ConfigError
from udr.types import Demonstration, FloatArray, Query

__all__ = ["BiEncoder", "ReadOutputs", "build_encoder", "load_encoder"]

Pooling = Literal["cls", "mean"]
Precision = Literal["float32", "bfloat16"]
ReadOutputs = Literal["all", "options"]
ANSWER_TOKENS = 64  # of a demonstration's answer at most, so that the input is never squeezed out
# as the configurations of one or another family name them
DROPOUT_KEYS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
PADDED_TOKENS = (2048, 65536)  # in one forward pass on a CPU (its caches are small) and on a GPU
PADDING = (0.2, 1e9)  # to each token of a text: a CPU gains little by larger passes, a GPU much


class BiEncoder(nn.Module):
    """E_q(instruction ⊕ x) and E_d(instruction ⊕ x' ⊕ y'), compared by inner product.

    Source: Li et al. 2023, arXiv 2305.04320, section 3.1. `shared` towers are one network. With `unit_norm` the
    vectors have length 1 and similarities are divided by a temperature while training. `query_instruction: false` is
    the released code's variant, whose query tower does not read the instruction. With `read_outputs: options` no y' of
    a generation task is read (`udr.prompt.for_encoder` leaves it out). With `precision: bfloat16` matrix products run
    in that type (about three times as fast on a CPU that knows it); weights and vectors stay float32.
    """

    def __init__(
        self,
        query_tower: nn.Module,
        demonstration_tower: nn.Module,
        tokenizer: Any,
        *,
        pooling: Pooling = "mean",
        unit_norm: bool = True,
        max_tokens: int = 256,
        instruction_tokens: int = 64,
        query_instruction: bool = True,
        demonstration_instruction: bool = True,
        read_outputs: ReadOutputs = "all",
        precision: Precision = "float32",
        fingerprint: str = "unsaved",
    ) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.demonstration_tower = demonstration_tower
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.unit_norm = unit_norm
        self.max_tokens = max_tokens
        self.instruction_tokens = instruction_tokens
        self.query_instruction = query_instruction
        self.demonstration_instruction = demonstration_instruction
        self.read_outputs = read_outputs
        self.precision = precision
        self._fingerprint = fingerprint

    @property
    def shared(self) -> bool:
        return self.query_tower is self.demonstration_tower

    @property
    def dim(self) -> int:
        return int(self.query_tower.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the vectors beside the weights."""
        return {
            "pooling": self.pooling,
            "unit_norm": self.unit_norm,
            "max_tokens": self.max_tokens,
            "instruction_tokens": self.instruction_tokens,
            "query_instruction": self.query_instruction,
            "demonstration_instruction": self.demonstration_instruction,
            "precision": self.precision,
            # left out where it is the paper's, so that encoders saved before it could be chosen keep their fingerprint
            **({} if self.read_outputs == "all" else {"read_outputs": self.read_outputs}),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of the files, or of the weights after training; then of the settings."""
        settings = json.dumps(self.settings, sort_keys=True).encode()
        return f"{self._fingerprint}-{hashlib.blake2b(settings, digest_size=4).hexdigest()}"

    def refresh_fingerprint(self) -> None:
        """Name changed weights anew, so that no index of the former ones takes their vectors."""
        h = hashlib.blake2b(digest_size=8)
        for weights in self.parameters():
            h.update(weights.detach().cpu().numpy().tobytes())
        self._fingerprint = f"unsaved-{h.hexdigest()}"

    @property
    def device(self) -> torch.device:
        return next(self.query_tower.parameters()).device

    # -- text to token ids

    def query_ids(self, queries: Sequence[Query], instruction: str = "") -> list[list[int]]:
        """[CLS] instruction x [SEP], the input cut at its end where it is too long."""
        return self._compose([q.input for q in queries], None, instruction if self.query_instruction else "")

    def demonstration_ids(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> list[list[int]]:
        """[CLS] instruction x' y' [SEP]; where it is too long x' is cut, never y'."""
        inputs, outputs = [d.input for d in demonstrations], [d.output for d in demonstrations]
        return self._compose(inputs, outputs, instruction if self.demonstration_instruction else "")

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Tokens of each text (n,) that are left out because it is too long."""
        cut = [0] * len(texts)
        room = self.max_tokens - min(self.instruction_tokens, self.max_tokens // 4) - 2
        for i, text in enumerate(texts):
            answer = text.output if isinstance(text, Demonstration) else None
            size = len(answer or "")
            if size <= min(ANSWER_TOKENS, self.max_tokens // 2) and len(text.input) + size <= room:
                continue  # no token stands for less than a character
            told = instruction if (self.query_instruction if answer is None else self.demonstration_instruction) else ""
            outputs = None if answer is None else [answer]
            frame = len(self._compose([""], None, told)[0])
            kept = len(self._compose([text.input], outputs, told)[0]) - frame
            cut[i] = sum(len(ids) for ids in self._ids([text.input, *(outputs or ())])) - kept
        return cut

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """Tokens of each query (n,) that the tower reads, its frame and the instruction among them."""
        return [len(ids) for ids in self.query_ids(queries, instruction)]

    def _compose(self, inputs: list[str], outputs: list[str] | None, instruction: str) -> list[list[int]]:
        if not inputs:
            return []
        instruction_tokens = min(self.instruction_tokens, self.max_tokens // 4)  # so that all parts have room
        answer_tokens = min(ANSWER_TOKENS, self.max_tokens // 2)
        head = [self.tokenizer.cls_token_id, *self._ids([instruction])[0][:instruction_tokens]]
        tail = [self.tokenizer.sep_token_id]
        answers = self._ids(outputs) if outputs is not None else [[] for _ in inputs]
        composed = []
        for own, answer in zip(self._ids(inputs), answers, strict=True):
            end = answer[:answer_tokens] + tail
            composed.append(head + own[: max(0, self.max_tokens - len(head) - len(end))] + end)
        return composed

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)[
            "input_ids"
        ]
        return ids

    # -- token ids to vectors

    def embed(self, ids: Sequence[Sequence[int]], tower: nn.Module) -> Tensor:
        """Vectors (n, d) of token-id sequences, with gradients; batches of like length spare the padding."""
        on_gpu = self.device.type == "cuda"
        batches = list(length_batches(ids, PADDED_TOKENS[on_gpu], PADDING[on_gpu]))
        with autocast(self.device, self.precision == "bfloat16"):  # one for all: it casts every weight once
            vectors = torch.cat([self._embed_padded([ids[i] for i in batch], tower) for batch in batches])
        place = torch.tensor([i for batch in batches for i in batch], device=vectors.device).argsort()
        return vectors[place]

    def embed_both(
        self, queries: Sequence[Sequence[int]], demonstrations: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Vectors of queries (n, d) and demonstrations (m, d), with gradients; shared towers read both in one go."""
        if not self.shared:
            return self.embed(queries, self.query_tower), self.embed(demonstrations, self.demonstration_tower)
        vectors = self.embed([*queries, *demonstrations], self.query_tower)
        return vectors[: len(queries)], vectors[len(queries) :]

    def _embed_padded(self, ids: Sequence[Sequence[int]], tower: nn.Module) -> Tensor:
        hidden, mask = self._hidden(ids, tower)
        if self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.normalize(vectors, dim=-1) if self.unit_norm else vectors

    def _hidden(self, ids: Sequence[Sequence[int]], tower: nn.Module) -> tuple[Tensor, Tensor]:
        """Features of tokens (n, t, d), padded, and which of them there are (n, t)."""
        width = max(len(row) for row in ids)
        tokens = torch.zeros((len(ids), width), dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        return tower(input_ids=tokens, attention_mask=mask).last_hidden_state.float(), mask

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries, float32 (n, d)."""
        return self._encode(self.query_ids(queries, instruction), self.query_tower)

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations, float32 (m, d)."""
        return self._encode(self.demonstration_ids(demonstrations, instruction), self.demonstration_tower)

    @torch.inference_mode()
    def encode_tokens(self, queries: Sequence[Query], instruction: str = "") -> list[FloatArray]:
        """Features of each query's tokens by the query tower, float32 (t, d) each, CLS and SEP included."""
        ids, found = self.query_ids(queries, instruction), [np.empty((0, self.dim), np.float32)] * len(queries)
        on_gpu, was_training = self.device.type == "cuda", self.training
        self.eval()
        for batch in length_batches(ids, PADDED_TOKENS[on_gpu], PADDING[on_gpu]):
            with autocast(self.device, self.precision == "bfloat16"):
                hidden, _ = self._hidden([ids[i] for i in batch], self.query_tower)
            for i, features in zip(batch, hidden.cpu().numpy(), strict=True):
                found[i] = features[: len(ids[i])].copy()  # not the whole batch with it
        self.train(was_training)
        return found

    @torch.inference_mode()
    def _encode(self, ids: Sequence[Sequence[int]], tower: nn.Module) -> FloatArray:
        if not ids:
            return np.empty((0, self.dim), dtype=np.float32)
        was_training = self.training
        self.eval()
        vectors: FloatArray = self.embed(ids, tower).cpu().numpy()
        self.train(was_training)
        return vectors

    def save(self, path: Path) -> None:
        """Write towers, tokenizer and settings below `path`; the fingerprint is the hash of what was written.

        Raises:
            ArtifactError: the disk is full or the folder cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.query_tower.save_pretrained(path / "query")  # type: ignore[operator]
            if not self.shared:
                self.demonstration_tower.save_pretrained(path / "demonstration")  # type: ignore[operator]
            self.tokenizer.save_pretrained(path / "query")
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: the encoder cannot be written ({error})") from None
        self._fingerprint = _fingerprint(path, self.shared)
        stated = {"shared": self.shared, "fingerprint": self._fingerprint, "settings": self.settings}
        write_json(path / "encoder.json", stated)


def length_batches(ids: Sequence[Sequence[int]], tokens: int, padding: float) -> Iterator[list[int]]:
    """Positions in batches of like length: at most `tokens` padded tokens, and `padding` for each token of a text.

    One text may exceed `tokens` alone. Queries of several tasks differ so much in length that padding them all to the
    longest cost a CPU twice what encoding each alone would.
    """
    batch: list[int] = []
    real = 0
    for i in sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i)):
        padded = len(ids[batch[0]]) * (len(batch) + 1) if batch else 0
        if padded > tokens or padded > (1 + padding) * (real + len(ids[i])):
            yield batch
            batch, real = [], 0
        batch.append(i)
        real += len(ids[i])
    if batch:
        yield batch


def _fingerprint(path: Path, shared: bool) -> str:
    parts = [fingerprint_files(path / "query")] + ([] if shared else [fingerprint_files(path / "demonstration")])
    return "-".join(parts)


def build_encoder(
    name: str,
    *,
    shared: bool = True,
    pooling: Literal["auto", "cls", "mean"] = "auto",
    unit_norm: bool = True,
    max_tokens: int = 256,
    instruction_tokens: int = 64,
    query_instruction: bool = True,
    demonstration_instruction: bool = True,
    read_outputs: ReadOutputs = "all",
    precision: Literal["auto"] | Precision = "float32",
    dropout: float | None = None,
    device: str = "auto",
) -> BiEncoder:
    """Make an untrained bi-encoder from a sentence encoder: a local folder or a hub name.

    `pooling: auto` is what the sentence encoder was trained with (mean if it does not say). `precision: auto` is
    bfloat16 where the device is fast at it; a saved encoder keeps what was chosen. `dropout` replaces the encoder's own
    while training.

    Raises:
        ConfigError: the encoder cannot be loaded or its tokenizer lacks CLS and SEP.
    """
    import copy

    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name)
        for key in DROPOUT_KEYS if dropout is not None else ():
            if hasattr(config, key):
                setattr(config, key, dropout)
        where = choose_device(device)
        attention = _attention(where)
        tower = AutoModel.from_pretrained(name, config=config, dtype=torch.float32, attn_implementation=attention)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = ("" if Path(name).is_dir() else "no such folder; from the hub: ") + str(error).splitlines()[0]
        raise ConfigError(f"encoder.name: {name}: cannot be loaded ({reason})") from None
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise ConfigError(f"encoder.name: {name}: its tokenizer has no CLS and SEP tokens; choose a BERT-like encoder")
    tower.to(where)
    return BiEncoder(
        tower,
        tower if shared else copy.deepcopy(tower),
        tokenizer,
        pooling=_own_pooling(name) if pooling == "auto" else pooling,
        unit_norm=unit_norm,
        max_tokens=min(max_tokens, _longest(tower)),
        instruction_tokens=instruction_tokens,
        query_instruction=query_instruction,
        demonstration_instruction=demonstration_instruction,
        read_outputs=read_outputs,
        precision=fast_dtype(where) if precision == "auto" else precision,
        fingerprint=fingerprint_files(Path(name)) if Path(name).is_dir() else f"{name}@{tower.config._commit_hash}",
    )


def _longest(tower: Any) -> int:
    """Tokens that an encoder reads at most; RoBERTa and its kin count positions from behind the padding's."""
    places = int(getattr(tower.config, "max_position_embeddings", None) or 2**31)
    padding = getattr(getattr(tower, "embeddings", None), "padding_idx", None)
    return places if padding is None else places - padding - 1


def _attention(device: str) -> str | None:
    """Plain attention on a CPU: over short texts the fused kernel's backward pass takes longer than all the rest."""
    return "eager" if device == "cpu" else None  # none: what the encoder itself prefers


def _own_pooling(name: str) -> Pooling:
    """The pooling that the sentence encoder's own files state."""
    settings = Path(name) / "1_Pooling" / "config.json"
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            settings = Path(hf_hub_download(name, "1_Pooling/config.json"))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            return "mean"
    stated = read_json(settings) if settings.is_file() else {}
    # sentence-transformers 6 writes one word where earlier versions wrote a flag for each mode
    return "cls" if stated.get("pooling_mode_cls_token") or stated.get("pooling_mode") == "cls" else "mean"


def load_encoder(path: Path, device: str = "auto") -> BiEncoder:
    """Open what `BiEncoder.save` wrote.

    Raises:
        ArtifactError: files are missing or differ from what was saved.
    """
    from transformers import AutoModel, AutoTokenizer

    saved = read_json(path / "encoder.json")
    shared = bool(saved.get("shared"))
    if not isinstance(saved.get("settings"), dict) or _fingerprint(path, shared) != saved.get("fingerprint"):
        raise ArtifactError(f"{path}: the encoder's files differ from what was saved; restore or train it again")
    where = choose_device(device)

    def load(tower: str) -> nn.Module:
        model = AutoModel.from_pretrained(path / tower, dtype=torch.float32, attn_implementation=_attention(where))
        return cast(nn.Module, model.to(where))

    query = load("query")
    return BiEncoder(
        query,
        query if shared else load("demonstration"),
        AutoTokenizer.from_pretrained(path / "query"),
        fingerprint=str(saved["fingerprint"]),
        **saved["settings"],
    )


@contextmanager
def autocast(device: torch.device, enabled: bool) -> Iterator[None]:
    """bfloat16 where matrix products are fast at it; master weights stay float32.

    Where gradients are wanted a CPU attends plainly: the fused kernel's backward takes four times as long in bfloat16.
    """
    if not enabled:
        yield
        return
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and torch.is_grad_enabled() else nullcontext()
    with torch.autocast(device.type, dtype=torch.bfloat16), plain:
        yield

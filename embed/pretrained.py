"""Encoders that others have trained: vision models of transformers, and whatever sentence-transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from embed.image import AT_ONCE, encode_pictures
from udr.artifacts import fingerprint_files
from udr.devices import choose_device
from udr.errors import ConfigError, DataError
from udr.types import Demonstration, FloatArray, Query

__all__ = ["SentenceTransformerEncoder", "VisionModelEncoder", "load_sentence_transformer", "load_vision_model"]


class VisionModelEncoder:
    """Vectors of length 1 of pictures: a vision model's pooled output, or the mean over its tokens or cells."""

    def __init__(self, model: Any, processor: Any, fingerprint: str) -> None:
        self.model, self.processor, self.fingerprint = model.eval(), processor, fingerprint
        self.dim = self._encode([Image.new("RGB", (32, 32))]).shape[1]

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries' pictures, float32 (n, d).

        Raises:
            DataError: a query without a picture, or one that cannot be opened.
        """
        return encode_pictures(queries, self.dim, self._encode)

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations' pictures, float32 (m, d)."""
        return self.encode_queries([d.query for d in demonstrations])

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Nothing of a picture is left out."""
        return [0] * len(texts)

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """None: no text is read."""
        return [0] * len(queries)

    def _encode(self, pictures: Sequence[Image.Image]) -> FloatArray:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            out = self.model(**inputs)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            hidden = out.last_hidden_state  # tokens (n, t, d) or cells (n, d, h, w)
            pooled = hidden.mean(1) if hidden.dim() == 3 else hidden.mean((2, 3))
        vectors: FloatArray = torch.nn.functional.normalize(pooled.flatten(1).float(), dim=1).cpu().numpy()
        return vectors


class SentenceTransformerEncoder:
    """A sentence-transformers model: a query with a picture by its picture, any other by its text.

    A model of both puts them into one space, so that text finds pictures. Of a demonstration the input is read.
    """

    def __init__(self, model: Any, fingerprint: str) -> None:
        self.model, self.fingerprint = model, fingerprint
        self.dim = int(model.encode(["a"], show_progress_bar=False).shape[1])

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of length 1 of queries, float32 (n, d).

        Raises:
            DataError: a picture that cannot be opened, or any where the model reads texts alone.
        """
        vectors = np.empty((len(queries), self.dim), np.float32)
        shown = [i for i, q in enumerate(queries) if q.media]
        told = [i for i, q in enumerate(queries) if not q.media]
        if shown:  # in calls of their own: a model takes pictures or texts, and opened pictures are large
            vectors[shown] = encode_pictures([queries[i] for i in shown], self.dim, self._encode_pictures)
        if told:
            vectors[told] = self._encode([queries[i].input for i in told])
        return vectors

    def _encode(self, inputs: Sequence[Any]) -> FloatArray:
        encode = self.model.encode
        vectors: FloatArray = encode(
            list(inputs), batch_size=AT_ONCE, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32)

    def _encode_pictures(self, pictures: Sequence[Image.Image]) -> FloatArray:
        try:
            return self._encode(pictures)
        except ValueError:
            raise DataError("this model reads no pictures") from None

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of length 1 of demonstrations' inputs, float32 (m, d)."""
        return self.encode_queries([d.query for d in demonstrations])

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Not known: sentence-transformers does not tell."""
        return [0] * len(texts)

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """Tokens of each query's text (n,), as far as the model reads it; 0 of a picture."""
        split = getattr(self.model, "preprocess", self.model.tokenize)  # its name from version 6 on
        return [0 if query.media else split([query.input])["input_ids"].numel() for query in queries]


def load_vision_model(name: str, device: str = "auto") -> VisionModelEncoder:
    """Open any vision model of transformers, by folder or hub name; of a model of text and pictures the vision part.

    Raises:
        ConfigError: it cannot be loaded, or reads no pictures.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(name, use_fast=False)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"hf:{name}: cannot be loaded ({str(error).splitlines()[0]})") from None
    fingerprint = _fingerprint("hf", name, model)  # of the whole: the vision part does not know its commit
    vision = getattr(model, "vision_model", model).to(choose_device(device))
    return VisionModelEncoder(vision, processor, fingerprint)


def load_sentence_transformer(name: str, device: str = "auto") -> SentenceTransformerEncoder:
    """Open any sentence-transformers model, by folder or hub name.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(name, device=choose_device(device))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"st:{name}: cannot be loaded ({str(error).splitlines()[0]})") from None
    return SentenceTransformerEncoder(model, _fingerprint("st", name, model))


def _fingerprint(kind: str, name: str, model: Any) -> str:
    """Of a folder's files, or the hub's commit."""
    path = Path(name)
    if path.is_dir():
        weights = [p for p in path.rglob("*.safetensors") if p.parent != path]
        parts = [fingerprint_files(folder) for folder in sorted({path, *(p.parent for p in weights)})]
        return f"{kind}-{'-'.join(parts)}"
    config = getattr(model, "config", None)
    return f"{kind}-{name}@{getattr(config, '_commit_hash', None)}"

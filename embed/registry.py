"""Encoders by address: `artifact:FOLDER` is ours, `hf:NAME` a vision model of transformers, `st:NAME` a sentence-
transformers model, of text, pictures, or both. A translator's folder is two encoders: `content:FOLDER` finds the same
thing in any style, `attribute:FOLDER` the same style."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from udr.errors import ArtifactError, ConfigError, UnknownNameError
from udr.types import Encoder

__all__ = ["KINDS", "artifact_kind", "open_encoder"]


def _artifact(name: str, device: str) -> Encoder:
    from udr.artifacts import read_json

    path = Path(name)
    if not (path / "encoder.json").is_file():
        raise ArtifactError(f"{path}: no encoder folder (it has an encoder.json)")
    kind = read_json(path / "encoder.json").get("kind")
    if kind == "image":
        from embed.image import load_image_encoder

        return load_image_encoder(path, device)
    if kind == "video":
        from embed.video import load_video_encoder

        return load_video_encoder(path, device)
    if kind == "cross_modal":
        from embed.cross_modal import load_cross_modal

        return load_cross_modal(path, device)
    if kind == "translation":
        raise ConfigError(f"{path} is a translator; its encoders are content:{path} and attribute:{path}")
    if kind == "multi_task":
        from embed.multi_task import load_multi_task

        return load_multi_task(path, device)
    from udr.encoder import load_encoder

    return load_encoder(path, device)


def _content(name: str, device: str) -> Encoder:
    from embed.translation import TranslatorEncoder, load_translator

    return TranslatorEncoder(load_translator(Path(name), device), "content")


def _attribute(name: str, device: str) -> Encoder:
    from embed.translation import TranslatorEncoder, load_translator

    return TranslatorEncoder(load_translator(Path(name), device), "attribute")


def _vision_model(name: str, device: str) -> Encoder:
    from embed.pretrained import load_vision_model

    return load_vision_model(name, device)


def _sentence_transformer(name: str, device: str) -> Encoder:
    from embed.pretrained import load_sentence_transformer

    return load_sentence_transformer(name, device)


KINDS: dict[str, Callable[[str, str], Encoder]] = {
    "artifact": _artifact,
    "content": _content,
    "attribute": _attribute,
    "hf": _vision_model,
    "st": _sentence_transformer,
}


def artifact_kind(address: str) -> str:
    """What a folder of ours is (image, video, cross_modal, multi_task); "": a retriever's, others', or no folder."""
    from udr.artifacts import read_json

    kind, _, name = address.partition(":")
    path = Path(name) / "encoder.json"
    return str(read_json(path).get("kind", "")) if kind == "artifact" and path.is_file() else ""


def open_encoder(address: str, device: str = "auto") -> Encoder:
    """Open the encoder at `KIND:NAME`.

    Raises:
        UnknownNameError: no such kind.
        ConfigError: no address, or a model that cannot be loaded.
        ArtifactError: a folder of ours that is damaged.
    """
    kind, colon, name = address.partition(":")
    if not colon or not name:
        raise ConfigError(f"{address!r} is no encoder's address; expected {', '.join(f'{k}:NAME' for k in KINDS)}")
    if kind not in KINDS:
        raise UnknownNameError("kind of encoder", kind, KINDS)
    return KINDS[kind](name, device)

"""The frozen LM that the settings name: in process, behind LLM servers, or the stand-in without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.settings import LMSettings
from udr.errors import ConfigError
from udr.evaluation import LanguageModel
from udr.scoring.cache import ScoreCache

__all__ = ["build_lm"]

SMALL_ENOUGH = 4e9  # bytes of weights that are opened beside a server to check that it holds the same ones


def build_lm(settings: LMSettings, cache: ScoreCache | None = None) -> LanguageModel:
    """Open the LM. With servers its log-probabilities of a few texts are compared with those that `cache` remembers.

    Raises:
        ScorerUnavailable: it cannot be loaded or reached.
        ConfigError: settings that do not go together, or a server that serves another model.
        FingerprintMismatch: a server whose tokenizer or weights are not those asked for.
    """
    if settings.name == "fake":
        from udr.fakes import FakeLM

        return FakeLM()
    if settings.servers:
        return _served(settings, cache)
    if settings.engine == "vllm":
        from udr.scoring.vllm_engine import build_vllm_lm

        return build_vllm_lm(settings.name, revision=settings.revision, dtype=settings.dtype)
    from udr.scoring.causal_lm import build_causal_lm

    return build_causal_lm(
        settings.name,
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        row_tokens=settings.row_tokens,
    )


def _served(settings: LMSettings, cache: ScoreCache | None) -> LanguageModel:
    from udr.scoring.served_lm import build_served_lm

    expected = {}
    if settings.check_weights and (own := _own_probe(settings, cache)) is not None:
        expected[settings.name] = own

    def recall(fingerprint: str, found: Sequence[float]) -> dict[str, list[float]]:
        if cache is None:
            return {}
        before = cache.probe(fingerprint)
        if before is None:
            cache.keep_probe(fingerprint, found)
            return {}
        return {f"the model whose scores {cache.path} holds": before}

    return build_served_lm(
        settings.name,
        settings.servers,
        revision=settings.revision,
        served_name=settings.served_name,
        in_flight=settings.in_flight,
        timeout=settings.timeout,
        patience=settings.patience,
        key=_read_key(settings.key_file),
        expected=expected,
        recall=recall,
    )


def _own_probe(settings: LMSettings, cache: ScoreCache | None) -> list[float] | None:
    """The probes of the weights in the folder `lm.name`, where there are any and they are small; computed once."""
    folder = Path(settings.name)
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    if not 0 < weights <= SMALL_ENOUGH:
        return None
    from udr.artifacts import fingerprint_files
    from udr.scoring.causal_lm import build_causal_lm
    from udr.scoring.identity import probe

    name = f"{fingerprint_files(folder)}-probe"
    found = cache.probe(name) if cache is not None else None
    if found is None:
        found = probe(build_causal_lm(settings.name, device="cpu"))
        if cache is not None:
            cache.keep_probe(name, found)
    return found


def _read_key(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"lm.key_file: {path}: cannot be read ({error})") from None

"""What turns pools into vectors: the sentence encoder, and the trained retriever folders the service was given."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import structlog

from embed.registry import KINDS, artifact_kind, open_encoder
from udr.artifacts import read_json
from udr.errors import ArtifactError, ConfigError, UDRError, UnknownNameError
from udr.fakes import FakeEncoder
from udr.mixture import MixedEncoder, mix
from udr.prompt import for_encoder
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Encoder, FloatArray, Query

__all__ = ["DENSE", "PoolEncoder", "Precision", "Retrievers", "sentence_encoder"]

Precision = Literal["auto", "float32", "int8"]
_log = structlog.get_logger("udr.serving")

DENSE = "dense"  # the untrained sentence encoder's name among the retrievers
_PLAIN = TaskSpec(name="plain", family="custom", kind="generation", metric="rouge_l")
_ASKED = 2000  # demonstrations of a pool that decide the share of each encoder
_HELD = 2  # encoders of one name: the one that its files make now, and the one before, for pools that it still answers


class PoolEncoder:
    """One task's queries and demonstrations as an encoder reads them; its fingerprint covers the task's words.

    Args:
        encoder: of demonstrations, and so of the index.
        spec: the task.
        inputs_only: demonstrations are their inputs, as for a sentence encoder that was trained for no task.
        quick: encodes queries in `encoder`'s place, if it is quicker and near enough.
    """

    def __init__(
        self, encoder: Encoder, spec: TaskSpec, *, inputs_only: bool = False, quick: Encoder | None = None
    ) -> None:
        self.encoder = encoder
        self.quick = quick or encoder
        self.spec = spec
        self.inputs_only = inputs_only

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def fingerprint(self) -> str:
        if self.inputs_only:
            return f"{self.encoder.fingerprint}-inputs"
        words = repr((self.spec.retrieval_instruction, self.spec.template.answer_prefix, self.spec.verbaliser))
        return f"{self.encoder.fingerprint}-{hashlib.blake2b(words.encode(), digest_size=4).hexdigest()}"

    @property
    def reads_texts_alone(self) -> bool:
        """True where a picture, clip or sound would be passed over."""
        from udr.encoder import BiEncoder
        from udr.onnx_encoder import OnnxEncoder

        return isinstance(self.encoder, BiEncoder | OnnxEncoder | FakeEncoder | MixedEncoder)

    @property
    def instruction(self) -> str:
        return "" if self.inputs_only else self.spec.retrieval_instruction

    def encode_queries(self, queries: Sequence[Query]) -> FloatArray:
        """Vectors (n, d)."""
        return self.quick.encode_queries(queries, self.instruction)

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration]) -> FloatArray:
        """Vectors (m, d)."""
        if self.inputs_only:
            return self.encoder.encode_queries([d.query for d in demonstrations])
        read = for_encoder(self.spec, demonstrations, self.encoder)
        return self.encoder.encode_demonstrations(read, self.instruction)

    def tokens_cut(self, texts: Sequence[Query | Demonstration]) -> list[int]:
        """Tokens of each text (n,) that the encoder leaves out because it is too long."""
        if self.inputs_only:
            return self.encoder.tokens_cut([t.query if isinstance(t, Demonstration) else t for t in texts])
        read = [for_encoder(self.spec, [t], self.encoder)[0] if isinstance(t, Demonstration) else t for t in texts]
        return self.encoder.tokens_cut(read, self.instruction)

    def tokens_read(self, queries: Sequence[Query]) -> list[int]:
        """Tokens of each query (n,) that the encoder reads; 0 of pictures, clips and sounds."""
        return self.encoder.tokens_read(queries, self.instruction)


class Retrievers:
    """Encoders by name: `dense`, and those that the service was given; each is loaded when it is first asked for.

    A folder may be written anew while it is in use: whoever opens its retriever for new vectors gets what the folder
    holds now, and whoever goes on with old ones the encoder that made them.

    Args:
        dense: makes the sentence encoder; None where the service has none (BM25 alone).
        places: by name a trained retriever's folder, as `udr index` writes it, or an encoder's address
            (`embed.registry`).
        precision: of queries; auto: int8 where the CPU has a unit for it.
    """

    def __init__(
        self,
        dense: Callable[[], Encoder] | None,
        places: Mapping[str, str],
        *,
        precision: Precision = "auto",
    ) -> None:
        self._makers: dict[str, Callable[[], Encoder]] = {DENSE: dense} if dense else {}
        self._files: dict[str, Path] = {}  # that a folder's maker reads
        self._trained: dict[str, Path] = {}  # on tasks; others read a demonstration's input, whatever the task
        for name, place in places.items():
            made: dict[str, Callable[[], Encoder]]
            if place.partition(":")[0] in KINDS:
                made = {name: partial(open_encoder, place)}
            else:
                folder = Path(place)
                if not (folder / "encoder" / "encoder.json").is_file():
                    raise ArtifactError(f"retriever {name!r}: {folder}: not a retriever folder (no encoder/)")
                made = _makers_of(name, folder / "encoder")
                self._files |= dict.fromkeys(made, folder / "encoder")
                if "kind" not in read_json(folder / "encoder" / "encoder.json"):
                    self._trained[name] = folder
            if twice := made.keys() & self._makers.keys():
                raise ConfigError(f"retriever {name!r}: there is a {', '.join(sorted(twice))} already; rename one")
            self._makers |= made
        self._precision = precision
        self._loaded: dict[str, list[_Loaded]] = {}  # the newest first
        self._loading = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._makers)

    def open(
        self,
        name: str,
        spec: TaskSpec,
        sample: Sequence[Demonstration],
        weights: Sequence[float] | None = None,
        fingerprint: str = "",
    ) -> tuple[PoolEncoder, list[float] | None]:
        """The encoder of one pool under a retriever, and the weights of the trained and the untrained one in it.

        A task that the retriever was trained on is encoded by the trained encoder alone (weights None). Another one
        is encoded by both: by the `weights` that the pool was given before, or as `sample` advises (`udr.mixture`).
        Where there is no sample yet both count alike.

        Args:
            name: of the retriever.
            spec: of the pool's task.
            sample: of the pool's demonstrations.
            weights: that the pool was given before.
            fingerprint: of the encoder that made the vectors which the pool has; while it is held it is given. "": what
                the files make now.

        Raises:
            UnknownNameError: no such retriever.
            ArtifactError: its files are damaged, or it holds no untrained encoder and the task is new to it.
        """
        if name not in self._makers:
            raise UnknownNameError("retriever", name, [*self._makers, "bm25"])
        if fingerprint:
            alone = weights is None
            for own in [*self._loaded.get(name, ())]:
                found = self._of_pool(own, name, spec, sample, weights, alone=alone, anew=False)
                if found[0].fingerprint == fingerprint:
                    return found
        else:
            alone = name in self._trained and (self._trained[name] / "tasks" / spec.name).is_dir()
        own = self._load(name, self._makers[name], self._files.get(name))
        return self._of_pool(own, name, spec, sample, weights, alone=alone, anew=True)

    def _of_pool(
        self,
        trained: _Loaded,
        name: str,
        spec: TaskSpec,
        sample: Sequence[Demonstration],
        weights: Sequence[float] | None,
        *,
        alone: bool,
        anew: bool,
    ) -> tuple[PoolEncoder, list[float] | None]:
        """As `open`, of one that is loaded; `alone`: it knows the task; `anew`: the other files are looked at again."""
        if name not in self._trained:
            return PoolEncoder(trained.encoder, spec, inputs_only=True, quick=trained.quick), None
        if alone:
            return PoolEncoder(trained.encoder, spec, quick=trained.quick), None
        untrained = self._untrained(name, anew=anew)
        if weights is None:
            weights = [1.0, 1.0]
            if sample:
                chosen = mix(spec, sample[:_ASKED], trained.encoder, untrained.encoder).ranker.encoder
                weights = [chosen.a, chosen.b] if isinstance(chosen, MixedEncoder) else weights
        a, b = weights
        if not b:  # the other one's vectors would be nothing but zeros
            return PoolEncoder(trained.encoder, spec, quick=trained.quick), [a, b]
        if not a:
            return PoolEncoder(untrained.encoder, spec, inputs_only=True, quick=untrained.quick), [a, b]
        exact = MixedEncoder(trained.encoder, untrained.encoder, a, b)
        return PoolEncoder(exact, spec, quick=MixedEncoder(trained.quick, untrained.quick, a, b)), [a, b]

    def plain(self, name: str) -> PoolEncoder:
        """A retriever as an encoder of plain texts that belong to no task.

        Raises:
            UnknownNameError: no such retriever.
            ArtifactError: its files are damaged.
        """
        if name not in self._makers:
            raise UnknownNameError("retriever", name, self._makers)
        held = self._loaded.get(name)
        own = held[0] if held else self._load(name, self._makers[name], self._files.get(name))
        return PoolEncoder(own.encoder, _PLAIN, inputs_only=True, quick=own.quick)

    def _untrained(self, name: str, *, anew: bool) -> _Loaded:
        place = self._trained[name] / "untrained"
        held = self._loaded.get(f"{name}/untrained")
        return held[0] if held and not anew else self._load(f"{name}/untrained", partial(_load_folder, place), place)

    def _load(self, name: str, make: Callable[[], Encoder], place: Path | None) -> _Loaded:
        """What the files at a place make now; what they made before is held for those who go on with it."""
        with self._loading:
            held = self._loaded.get(name, [])
            written = _written(place)  # before they are read: if they change meanwhile they are read again next time
            if held and held[0].written == written:
                return held[0]
            encoder = make()
            if held and held[0].encoder.fingerprint == encoder.fingerprint:
                own = held[0]._replace(written=written)
                held = held[1:]
            elif "torch" in sys.modules:
                # encodings go side by side: two threads of one wait for each other where cores are busy, forty
                # times as long for a query, measured beside a language model
                sys.modules["torch"].set_num_threads(1)
                own = _Loaded(*_with_onnx(encoder, self._precision), written)
            else:
                own = _Loaded(encoder, encoder, written)
            self._loaded[name] = [own, *held][:_HELD]
            return own


class _Loaded(NamedTuple):
    """An encoder, what encodes queries in its place, and the files that it was made of."""

    encoder: Encoder
    quick: Encoder
    written: tuple[tuple[str, int, int, int], ...]


def _written(place: Path | None) -> tuple[tuple[str, int, int, int], ...]:
    """What tells a folder's files from those that were there before, without reading them.

    Raises:
        ArtifactError: they cannot be looked at.
    """
    try:
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place else []
        stats = [(str(path), path.stat()) for path in files]
    except OSError as error:
        raise ArtifactError(f"{place}: cannot be read ({error.strerror}); is it being written?") from None
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats)


def sentence_encoder(name: str) -> Callable[[], Encoder]:
    """What makes the encoder of a folder or hub name, of an address (`embed.registry`), or `fake` (udr.fakes)."""
    if name.partition(":")[0] in KINDS:
        return partial(open_encoder, name)
    return FakeEncoder if name == "fake" else partial(_build, name)


# torch is loaded with the first encoder: a service of BM25 alone does without


def _build(name: str) -> Encoder:
    from udr.encoder import build_encoder

    return build_encoder(name, device="auto")


def _load_folder(folder: Path) -> Encoder:
    return open_encoder(f"artifact:{folder}")


def _makers_of(name: str, encoder: Path) -> dict[str, Callable[[], Encoder]]:
    """What a folder's encoder is called, and what makes it; a translator is two: NAME-content and NAME-attribute."""
    if artifact_kind(f"artifact:{encoder}") == "translation":
        return {f"{name}-{reads}": partial(open_encoder, f"{reads}:{encoder}") for reads in ("content", "attribute")}
    return {name: partial(_load_folder, encoder)}


def _with_onnx(encoder: Encoder, precision: Precision) -> tuple[Encoder, Encoder]:
    """The encoder run by ONNX Runtime where that computes the same; else as it is."""
    from udr.devices import multiplies_int8
    from udr.encoder import BiEncoder
    from udr.onnx_encoder import OnnxEncoder

    if not isinstance(encoder, BiEncoder) or encoder.device.type != "cpu":
        return encoder, encoder
    try:
        exact = OnnxEncoder(encoder)
        in_int8 = precision == "int8" or (precision == "auto" and multiplies_int8())
        quick = OnnxEncoder(encoder, precision="int8") if in_int8 else exact
        return exact, quick
    except UDRError as error:
        _log.warning("torch encodes: ONNX Runtime cannot", error=str(error))
        return encoder, encoder

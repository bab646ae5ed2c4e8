"""What each code of a cross-modal encoder means: in which pictures' cells and which words it lies, and how purely; and
where a word lies in pictures and sounds."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embed.audio import log_mel, open_sound
from embed.cross_modal import CrossModalEncoder, Modality
from embed.media import open_picture, pixels_of
from embed.towers import words_of
from training.captioned import Captioned
from training.label_things import attention_picture
from training.retrieval import as_query
from training.sheets import SIDE, draw_captioned
from udr.errors import ConfigError, DataError
from udr.types import FloatArray, Query

__all__ = [
    "Meaning",
    "agreement",
    "code_meanings",
    "draw_heat",
    "heat_map",
    "perplexity",
    "purity",
    "report_html",
    "summary",
    "word_codes",
]

PICTURES = 6  # shown of a code
WORDS = 8
CONCEPT_WORDS = 3  # letters of a word that may be a concept, at least
LEAST_THINGS = 3  # that a concept has, or what is found of it says nothing
SHOWN = 72  # pixels of a picture in the report
HEATED = 8  # things on a sheet of a word


@dataclass
class Meaning:
    """One code.

    Args:
        code: its number.
        used: share of places of each modality that it is nearest to.
        words: that it lies on most often, with how often.
        pictures: things in whose pictures it is most probable, (id, probability, row of its cell, column).
        concept: the word that it goes with best, and how well.
    """

    code: int
    used: dict[str, float] = field(default_factory=dict)
    words: list[tuple[str, int]] = field(default_factory=list)
    pictures: list[tuple[str, float, int, int]] = field(default_factory=list)
    concept: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "code": self.code,
            "used": {name: round(share, 5) for name, share in self.used.items()},
            "words": [{"word": word, "count": count} for word, count in self.words],
            "pictures": [
                {"id": name, "probability": round(p, 4), "row": row, "column": column}
                for name, p, row, column in self.pictures
            ],
            **self.concept,
        }


def concepts_of(rows: Sequence[Captioned], language: str) -> dict[str, NDArray[np.bool_]]:
    """Words of captions that some things share, each with which things' captions hold it, (n,)."""
    own = [{w for text in row.texts([language] if language else [])[:1] for w in words_of(text)} for row in rows]
    counts = Counter(word for words in own for word in words)
    kept = [w for w, n in counts.items() if LEAST_THINGS <= n <= len(rows) // 2 and len(w) >= CONCEPT_WORDS]
    return {word: np.array([word in words for words in own]) for word in sorted(kept)}


def purity(there: NDArray[np.bool_], concepts: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """The concept that a code goes with best by F1, with its precision and recall; `there` (n,) says where the code is.

    Precision is the share of things with the code that are of the concept, recall the share of the concept's things
    that have the code.
    """
    best: dict[str, Any] = {"concept": "", "f1": 0.0, "precision": 0.0, "recall": 0.0}
    for word, mine in concepts.items():
        both = int((there & mine).sum())
        if not both:
            continue
        precision, recall = both / int(there.sum()), both / int(mine.sum())
        f1 = 2 * precision * recall / (precision + recall)
        if f1 > best["f1"]:
            best = {"concept": word, "f1": f1, "precision": precision, "recall": recall}
    return best


def code_meanings(
    encoder: CrossModalEncoder, rows: Sequence[Captioned], language: str = "", voice: str = ""
) -> list[Meaning]:
    """Of each code what it lies on; the most used codes first, those never used last.

    Raises:
        ConfigError: the encoder has no codes.
        DataError: a picture or sound that cannot be read.
    """
    found = [Meaning(code) for code in range(encoder.net.codes)]
    concepts = concepts_of(rows, language)
    there = np.zeros((encoder.net.codes, len(rows)), bool)
    words: dict[int, Counter[str]] = defaultdict(Counter)
    for modality in encoder.modalities:
        own, probabilities = _probabilities(encoder, rows, modality, language, voice)
        tokens = [p.argmax(1) for p in probabilities]
        counts = np.bincount(np.concatenate(tokens), minlength=len(found)) if tokens else np.zeros(len(found))
        for meaning, count in zip(found, counts, strict=True):
            meaning.used[modality] = float(count / max(1, counts.sum()))
        for row, mine in zip(own, tokens, strict=True):
            there[mine, row] = True
        if modality == "text" and "text" not in encoder.frozen:
            for row, mine in zip(own, tokens, strict=True):
                for code, word in zip(mine, words_of(_text(rows[row], language)), strict=True):
                    words[int(code)][word] += 1
        if modality == "image" and "image" not in encoder.frozen:
            shown = [query for row in own if (query := as_query(rows[row], "image")) is not None]
            _add_pictures(found, [rows[row].id for row in own], encoder.code_probabilities(shown, blank=True))
    for meaning in found:
        meaning.words = words[meaning.code].most_common(WORDS)
        if there[meaning.code].any():
            meaning.concept = purity(there[meaning.code], concepts)
    return sorted(found, key=lambda m: -sum(m.used.values()))


def _text(row: Captioned, language: str) -> str:
    return row.texts([language] if language else [])[0]


def _probabilities(
    encoder: CrossModalEncoder, rows: Sequence[Captioned], modality: Modality, language: str, voice: str
) -> tuple[list[int], list[FloatArray]]:
    queries = [as_query(row, modality, language, voice) for row in rows]
    own = [i for i, query in enumerate(queries) if query is not None]
    return own, encoder.code_probabilities([query for query in queries if query is not None])


def _add_pictures(found: Sequence[Meaning], names: Sequence[str], probabilities: Sequence[FloatArray]) -> None:
    most = np.stack([p.max(0) for p in probabilities])  # (n, codes)
    places = np.stack([p.argmax(0) for p in probabilities])
    side = round(len(probabilities[0]) ** 0.5)
    for meaning in found:
        for i in np.argsort(-most[:, meaning.code])[:PICTURES]:
            row, column = divmod(int(places[i, meaning.code]), side)
            meaning.pictures.append((names[i], float(most[i, meaning.code]), row, column))


def perplexity(encoder: CrossModalEncoder, rows: Sequence[Captioned], language: str = "", voice: str = "") -> float:
    """exp of the entropy of which codes lie on things, all modalities that they have alike: how many are in use."""
    shares = np.zeros(encoder.net.codes)
    for modality in encoder.modalities:
        _, probabilities = _probabilities(encoder, rows, modality, language, voice)
        if probabilities:
            tokens = np.concatenate([p.argmax(1) for p in probabilities])
            shares += np.bincount(tokens, minlength=len(shares)) / len(tokens)
    used = shares[shares > 0] / shares.sum()
    return float(np.exp(-(used * np.log(used)).sum()))


def agreement(
    encoder: CrossModalEncoder, rows: Sequence[Captioned], language: str = "", voice: str = ""
) -> dict[str, dict[str, float]]:
    """How far the codes of a thing are the same in two modalities, for each pair of modalities.

    `equal` is how often the most probable code is the same; `overlap` the mean of Σ_v min(P_a(v), P_b(v)), from 0 to 1,
    and `overlap_of_others` the same of one thing and another one, which is what agrees without anything being meant.
    """
    found: dict[Modality, dict[int, FloatArray]] = {}
    for modality in encoder.modalities:
        own, probabilities = _probabilities(encoder, rows, modality, language, voice)
        found[modality] = {row: p.mean(0) for row, p in zip(own, probabilities, strict=True)}
    told = {}
    for (a, one), (b, other) in combinations(found.items(), 2):
        both = sorted(one.keys() & other.keys())
        if both:
            p, q = (np.stack([mine[row] for row in both]) for mine in (one, other))
            told[f"{a}={b}"] = {
                "equal": float((p.argmax(1) == q.argmax(1)).mean()),
                "overlap": float(np.minimum(p, q).sum(1).mean()),
                "overlap_of_others": float(np.minimum(p, np.roll(q, 1, 0)).sum(1).mean()),
            }
    return told


def word_codes(encoder: CrossModalEncoder, word: str) -> FloatArray:
    """P(e_v|word), the mean over the word's own parts, float32 (codes,)."""
    (probabilities,) = encoder.code_probabilities([Query(word, word)])
    mean: FloatArray = probabilities.mean(0)
    return mean


def heat_map(probabilities: FloatArray, wanted: FloatArray, usual: FloatArray) -> FloatArray:
    """How much each cell is made of what is wanted: Σ_v P(v|word) P(v|h_l) / P(v), row by row (l,).

    Division by how usual a code is keeps a ground that lies in every picture from answering to every word.

    Shape: probabilities (l, codes), wanted and usual (codes,) -> (l,).
    """
    found: FloatArray = (probabilities @ (wanted / np.maximum(usual, 1e-6))).astype(np.float32)
    return found


def draw_heat(
    encoder: CrossModalEncoder, rows: Sequence[Captioned], word: str, out: Path, language: str = "", voice: str = ""
) -> int:
    """Draw where a word lies in the cells of pictures and the frames of sounds, of the things that it lies in most.

    What is usual is counted over all of the things. Returns how many are drawn.

    Raises:
        ConfigError: the encoder reads no words, or neither pictures nor sounds part by part.
        DataError: no thing has a picture or sound, or a word that is none.
        ArtifactError: the file cannot be written.
    """
    places = [m for m in encoder.modalities if m != "text" and m not in encoder.frozen]
    if "text" not in encoder.modalities or not places:
        raise ConfigError("--heat: the encoder must read words, and pictures by cells or sounds by frames")
    wanted = word_codes(encoder, word)
    maps: dict[int, list[tuple[NDArray[np.uint8], FloatArray]]] = defaultdict(list)
    for modality in places:
        queries = {i: q for i, row in enumerate(rows) if (q := as_query(row, modality, language, voice)) is not None}
        if not queries:
            continue
        found = encoder.code_probabilities(list(queries.values()), blank=True)
        usual = np.concatenate(found).mean(0)
        for (i, query), probabilities in zip(queries.items(), found, strict=True):
            heat = heat_map(probabilities, wanted, usual)
            shape = (encoder.side, encoder.side) if modality == "image" else (1, len(heat))
            maps[i].append((_seen(query), heat.reshape(shape)))
    if not maps:
        raise DataError(f"none of {len(rows)} things has a picture or sound in which a word could lie")
    most = sorted(maps, key=lambda i: -max(float(heat.max()) for _, heat in maps[i]))[:HEATED]
    sheet = []
    for i in most:
        sheet.append([one for pixels, heat in maps[i] for one in ((pixels, rows[i].id), _heated(pixels, heat))])
    draw_captioned(
        sheet, out, f"where “{word}” lies: each picture and sound as it is where much of it lies, and paler elsewhere"
    )
    return len(sheet)


def _heated(pixels: NDArray[np.uint8], heat: FloatArray) -> tuple[NDArray[np.uint8], str]:
    return attention_picture(pixels, heat), f"at most {float(heat.max()):.2f}"


def _seen(query: Query) -> NDArray[np.uint8]:
    """A picture, or a sound's energies with low tones below, uint8 (3, s, s)."""
    (media,) = query.media
    if media.kind == "image":
        return pixels_of(open_picture(media, query.id), SIDE)
    bands = log_mel(torch.from_numpy(open_sound(media, query.id))).numpy().T[::-1]
    scaled = (255 * (bands - bands.min()) / max(float(np.ptp(bands)), 1e-6)).round().astype(np.uint8)
    drawn = Image.fromarray(scaled).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(drawn).transpose(2, 0, 1).copy()


# -- the report


def summary(perplexity: float, codes: int, agreements: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What is said of all codes together, a line each."""
    lines = [f"perplexity {perplexity:.1f} of {codes} codes"]
    for pair, row in agreements.items():
        lines.append(
            f"{pair.replace('=', ' = ')}: one likeliest code for {100 * row['equal']:.1f} % of things, overlap "
            f"{row['overlap']:.3f} (of one thing and another: {row['overlap_of_others']:.3f})"
        )
    return lines


def report_html(
    meanings: Iterable[Meaning], rows: Sequence[Captioned], side: int, title: str, said: Sequence[str]
) -> str:
    """A page that shows each code in pictures and words, with nothing outside itself; `side`: cells of a picture's.

    `said` are the lines of `summary`.
    """
    by_id = {row.id: row for row in rows}
    kept = [m for m in meanings if any(m.used.values())]
    body = [_section(meaning, by_id, side) for meaning in kept]
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        f"<h1>{name}</h1><p>{len(kept)} codes in use over {len(rows)} things. A frame marks the cell of a picture "
        f"where the code is most probable.</p>{''.join(f'<p>{html.escape(line)}</p>' for line in said)}"
        f"{''.join(body)}</html>\n"
    )


STYLE = (
    "body{font:16px/1.4 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "html{color:#222;background:#fff}"
    "section{border-top:1px solid #ccc;padding:.5rem 0}img{margin-right:.3rem;border:1px solid #ddd}"
    "h2{font-size:1.1rem;margin:.3rem 0}p{margin:.2rem 0}"
)


def _section(meaning: Meaning, by_id: Mapping[str, Captioned], side: int) -> str:
    used = ", ".join(f"{name} {100 * share:.2f} %" for name, share in meaning.used.items())
    words = ", ".join(f"{word} ({count})" for word, count in meaning.words)
    concept = meaning.concept
    best = (
        f"goes with “{concept['concept']}”: F1 {concept['f1']:.2f}, precision {concept['precision']:.2f}, "
        f"recall {concept['recall']:.2f}"
        if concept.get("concept")
        else "goes with no word"
    )
    pictures = "".join(
        _picture(by_id[name], row, column, side) for name, _, row, column in meaning.pictures if name in by_id
    )
    lines = [f"used: {used}", best, f"words: {words}" if words else ""]
    said = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
    return f"<section><h2>Code {meaning.code}</h2>{said}<div>{pictures}</div></section>"


def _picture(row: Captioned, y: int, x: int, side: int) -> str:
    picture = Image.fromarray(pixels_of(open_picture(row.image, row.id), SHOWN).transpose(1, 2, 0).copy())
    cell = SHOWN / side
    ImageDraw.Draw(picture).rectangle((x * cell, y * cell, (x + 1) * cell - 1, (y + 1) * cell - 1), outline="red")
    file = io.BytesIO()
    picture.save(file, "PNG")
    name = html.escape(row.texts()[0] if row.texts() else row.id, quote=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{name}" title="{name}" width="{SHOWN}" height="{SHOWN}">'

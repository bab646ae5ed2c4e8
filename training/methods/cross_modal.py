"""Cross-modal discrete representation: pictures, words and sounds of one thing meet, and are made of the same codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from embed.cross_modal import CrossModalNet, Encoded, Modality
from embed.quantizer import Quantised
from training.heads import in_full
from training.losses.cmcm import code_distribution, code_matching
from training.losses.mms import margin_at, mms
from training.material import Material
from training.moves import moved_pictures, moved_sounds

__all__ = ["CrossModal"]

STEEPEST = 100.0  # of the learnt scale of similarities


class CrossModal(nn.Module):
    """L = Σ over pairs of modalities of L_MMS + α · L_CMCM, + β · commitment.

    Source: Liu et al. 2021, "Cross-Modal Discrete Representation Learning", arXiv 2106.05438. Codes begin when the
    continuous part has learnt for a share of training. The loop hands on numbers of things; what they are lies here.

    Args:
        net: which is learnt.
        material: the things.
        size: pixels of a side that pictures are seen at.
        code_matching_weight: α; 0: codes are learnt, and not matched.
        commitment: β.
        warm_start: share of training without codes.
        temperature: similarities are divided by it at first; the scale is learnt.
        composed: share of pictures that are put on a canvas, some beside another one.
        words_dropped: share of words that are not read.
    """

    steps: Tensor

    def __init__(
        self,
        net: CrossModalNet,
        material: Material,
        size: int,
        *,
        code_matching_weight: float = 0.1,
        commitment: float = 0.25,
        warm_start: float = 0.3,
        temperature: float = 0.07,
        composed: float = 0.3,
        words_dropped: float = 0.1,
    ) -> None:
        super().__init__()
        self.net, self.size = net, size
        self.scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._material = material
        self.alpha, self.beta, self.warm_start = code_matching_weight, commitment, warm_start
        self.composed, self.words_dropped = composed, words_dropped

    @property
    def backbone(self) -> CrossModalNet:
        """What the online probe asks."""
        return self.net

    def forward(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Losses of things by their numbers (n,)."""
        there, encoded = self._encoded(rows)
        codes = self._quantised(encoded) if self.net.codes and progress >= self.warm_start else {}
        concepts = self._material.concepts[rows.cpu()].to(rows.device)
        with in_full(rows):
            return self._losses(there, encoded, codes, concepts)

    def after_step(self, progress: float) -> None:
        self.steps += 1

    def _encoded(self, rows: Tensor) -> tuple[dict[Modality, Tensor], dict[Modality, Encoded]]:
        """Of each modality which things have it, and what the tower makes of those."""
        there: dict[Modality, Tensor] = {}
        encoded: dict[Modality, Encoded] = {}
        for modality, variants in self._material.variants.items():
            has, inputs = variants.drawn(rows.cpu())
            if has.sum() > 1:  # batch normalisation wants two
                there[modality] = has.to(rows.device)
                encoded[modality] = self.net.encode(
                    modality, self._moved(modality, tuple(x.to(rows.device) for x in inputs))
                )
        return there, encoded

    def _moved(self, modality: Modality, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs as they might have been as well."""
        if modality == "image" and inputs[0].dtype == torch.uint8:
            with in_full(inputs[0]):
                return (moved_pictures(inputs[0].float() / 255, self.size, self.composed),)
        if modality == "text" and inputs[0].dtype == torch.long:
            kept = torch.rand(inputs[0].shape[:2], device=inputs[0].device) >= self.words_dropped
            kept[:, 0] |= ~(kept & (inputs[0] > 0).any(2)).any(1)  # never all of them
            return (inputs[0] * kept[..., None],)
        if modality == "audio" and len(inputs) == 2:
            return moved_sounds(inputs[0], inputs[1])
        return inputs

    def _quantised(self, encoded: Mapping[Modality, Encoded]) -> dict[Modality, Quantised]:
        """Codes of all modalities, which follow all of them alike."""
        with in_full(next(iter(encoded.values())).features):
            parts = [(e.features.float(), e.valid) for e in encoded.values()]
            return dict(zip(encoded, self.net.quantizer.together(parts), strict=True))

    def _losses(
        self,
        there: Mapping[Modality, Tensor],
        encoded: Mapping[Modality, Encoded],
        codes: Mapping[Modality, Quantised],
        concepts: Tensor,
    ) -> dict[str, Tensor]:
        vectors = {m: self.net.vectors(e, codes.get(m)) for m, e in encoded.items()}
        distributions = self._distributions(encoded) if codes and self.alpha else {}
        scale, margin = self.scale.exp().clamp(max=STEEPEST), margin_at(float(self.steps))
        zero = self.scale.sum() * 0  # a batch without pairs moves nothing
        found: dict[str, Tensor] = {"mms": zero, "cmcm": zero, "commitment": zero}
        for a, b in combinations(vectors, 2):
            own_a, own_b = _shared(there[a], there[b])
            if len(own_a) < 2:
                continue
            kinds = concepts[there[a]][own_a]
            same = kinds[:, None] == kinds[None]
            found["mms"] = found["mms"] + mms(scale * vectors[a][own_a] @ vectors[b][own_b].T, margin, same)
            if distributions:
                matched = code_matching(distributions[a][own_a], distributions[b][own_b], same)
                found["cmcm"] = found["cmcm"] + matched
        if codes:
            found["commitment"] = torch.stack([q.commitment for q in codes.values()]).sum()
            used = torch.cat([q.tokens[encoded[m].valid] for m, q in codes.items()])
            share = torch.bincount(used, minlength=self.net.codes).float() / len(used)
            found["perplexity"] = (-(share * share.clamp_min(1e-10).log()).sum()).exp()
        return {"loss": found["mms"] + self.alpha * found["cmcm"] + self.beta * found["commitment"]} | found

    def _distributions(self, encoded: Mapping[Modality, Encoded]) -> dict[Modality, Tensor]:
        return {m: code_distribution(self.net.quantizer.probabilities(e.features), e.valid) for m, e in encoded.items()}


def _shared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Places, among those that have one modality and among those that have the other, of things that have both."""
    both = a & b
    return both[a].nonzero()[:, 0], both[b].nonzero()[:, 0]

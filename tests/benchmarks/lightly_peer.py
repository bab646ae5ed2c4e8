"""Pre-train with lightly as its documentation's examples do, for `pictures_lightly.py`; runs in lightly's environment.

    python tests/benchmarks/lightly_peer.py METHOD LEARNT.npy KNOWN.npy ASKED.npy OUT '{"epochs": 10, …}'

Its own transforms (half the colours' strength, as they advise for pictures of 32 pixels, and no blur), losses, heads,
memory banks and a loader with two workers; the network, optimiser, schedule, batch and temperature are given. Writes
OUT/known.npy and OUT/asked.npy, features (n, d), and OUT/told.json.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import DenseCLProjectionHead, SimCLRProjectionHead
from lightly.transforms import DenseCLTransform, SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import nn

DIM = 128
SMALL = {"input_size": 32, "cj_strength": 0.5, "gaussian_blur": 0.0}


class Pictures(torch.utils.data.Dataset):
    def __init__(self, array: str, transform: Callable[[Image.Image], list[torch.Tensor]]) -> None:
        self.pixels, self.transform = np.load(array, mmap_mode="r"), transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[list[torch.Tensor], int]:
        return self.transform(Image.fromarray(np.ascontiguousarray(self.pixels[row].transpose(1, 2, 0)))), 0


def conv_wide() -> nn.Sequential:
    """embed.backbones' network of that name."""
    layers: list[nn.Module] = []
    for before, width, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, DIM, 2)):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class SimCLR(nn.Module):
    transform = SimCLRTransform(**SMALL)

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.backbone = conv_wide()
        self.head = SimCLRProjectionHead(DIM, DIM, 128)
        self.criterion = NTXentLoss(temperature=temperature)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.criterion(*(self.head(self.backbone(x).mean((2, 3))) for x in (first, second)))

    def follow(self, progress: float) -> None:
        pass


class DenseCL(nn.Module):
    transform = DenseCLTransform(**SMALL)

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.backbone = conv_wide()
        self.whole, self.local = DenseCLProjectionHead(DIM, DIM, 128), DenseCLProjectionHead(DIM, DIM, 128)
        self.own = nn.ModuleList([self.backbone, self.whole, self.local])
        self.slow = copy.deepcopy(self.own)
        utils.deactivate_requires_grad(self.slow)
        self.of_pictures, self.of_cells = (
            NTXentLoss(temperature=temperature, memory_bank_size=(4096, 128)) for _ in range(2)
        )

    @staticmethod
    def encode(parts: nn.ModuleList, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        backbone, whole, local = parts
        features = backbone(pictures)
        cells = features.flatten(2).permute(0, 2, 1)
        return cells, whole(features.mean((2, 3))), local(cells)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        cells, whole, local = self.encode(self.own, first)
        with torch.no_grad():
            key_cells, key_whole, key_local = self.encode(self.slow, second)
        key_local = utils.select_most_similar(cells, key_cells, key_local)
        dense = self.of_cells(local.flatten(end_dim=1), key_local.flatten(end_dim=1))
        return 0.5 * self.of_pictures(whole, key_whole) + 0.5 * dense

    def follow(self, progress: float) -> None:
        utils.update_momentum(self.own, self.slow, m=cosine_schedule(int(1000 * progress), 1000, 0.996, 1))


def features(backbone: nn.Module, array: str) -> np.ndarray:
    mean, std = (torch.tensor(IMAGENET_NORMALIZE[k]).view(3, 1, 1) for k in ("mean", "std"))
    pixels, found = np.load(array), []
    with torch.inference_mode():
        for start in range(0, len(pixels), 512):
            part = torch.from_numpy(pixels[start : start + 512]).float() / 255
            found.append(backbone.eval()((part - mean) / std).mean((2, 3)).numpy())
    return np.concatenate(found)


def main(name: str, learnt: str, known: str, asked: str, out: str, settings: str) -> None:
    given = json.loads(settings)
    torch.manual_seed(given["seed"])
    model = {"simclr": SimCLR, "densecl": DenseCL}[name](given["temperature"])
    dataset = Pictures(learnt, model.transform)
    loader = torch.utils.data.DataLoader(dataset, given["batch"], shuffle=True, drop_last=True, num_workers=2)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], given["lr"], weight_decay=given["weight_decay"]
    )
    steps = given["epochs"] * len(loader)
    rise = max(1, round(given["warmup"] * steps))

    def height(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, height)
    model.train()
    step, ends = 0, []
    for _ in range(given["epochs"]):
        times = []
        for (first, second), *_ in loader:
            model.follow(step / steps)
            loss = model(first, second)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            times.append(time.perf_counter())
        ends.append(times)
        print(f"lightly {name}: {step}/{steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    # steady steps: the workers of an epoch begin anew, and have batches ready before its first step
    skipped = len(loader) // 3
    rates = [given["batch"] * (len(t) - 1 - skipped) / (t[-1] - t[skipped]) for t in ends]
    epochs = [given["batch"] * len(b) / (b[-1] - a[-1]) for a, b in pairwise(ends)]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "told.json").write_text(json.dumps({"loss": loss.item(), "steady": rates, "epochs": epochs}))
    np.save(folder / "known.npy", features(model.backbone, known))
    np.save(folder / "asked.npy", features(model.backbone, asked))


if __name__ == "__main__":
    main(*sys.argv[1:])

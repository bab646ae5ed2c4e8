"""What a pre-training of video encoders reads: videos as arrays, and the clips that the online probe asks about."""

from __future__ import annotations

import numpy as np

from training.clips import Videos, middle_clips, prepare_videos
from training.loop import PROBED, Probe
from training.pictures import tell_left_out
from training.pretrain_settings import PretrainConfig
from training.run import Report

__all__ = ["read_videos", "side_of"]


def side_of(config: PretrainConfig) -> int:
    """Pixels of a side that are kept of each frame."""
    return config.video.side or config.size * 8 // 7


def read_videos(config: PretrainConfig, report: Report) -> tuple[Videos, Probe]:
    """Videos that are learnt from, and a probe that asks a tenth of them by the rest: only how it goes.

    Raises:
        DataError: no such folder, or nothing in it can be read.
    """
    own, told = config.video, report(f"reading {config.data.name}")
    videos = prepare_videos(config.data, side_of(config), own.rate, own.longest, config.out / "videos", progress=told)
    tell_left_out(videos.unread, "videos", videos.left_out)
    order = np.random.default_rng(config.seed).permutation(len(videos))
    cut = max(1, len(order) // 10)
    bank, asked = (
        middle_clips(videos, rows, own.frames, own.pace, config.size)
        for rows in (order[cut:][:PROBED], order[:cut][: PROBED // 5])
    )
    return videos, Probe(bank, asked)

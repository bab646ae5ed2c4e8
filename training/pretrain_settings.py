"""Settings of pre-training; each method's own lie under its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from training.settings import WeightingName
from udr.config import StrictConfig

__all__ = [
    "CIMSettings",
    "CrossModalSettings",
    "DRITSettings",
    "DenseCLSettings",
    "DiffusionSettings",
    "LabelsSettings",
    "LoopSettings",
    "MECSettings",
    "MultiTaskSettings",
    "PretrainConfig",
    "STORSettings",
    "SimCLRSettings",
    "VideoSettings",
]


class SimCLRSettings(StrictConfig):
    """Chen et al. 2020, arXiv 2002.05709."""

    temperature: float = Field(default=0.5, gt=0)  # similarities are divided by it
    hidden: int = Field(default=0, ge=0)  # of the head; 0: the backbone's width
    out: int = Field(default=128, ge=2)  # features that are compared
    layers: int = Field(default=2, ge=1)  # of the head: 2 in the paper, 3 in SimCLRv2


class DenseCLSettings(StrictConfig):
    """Wang et al. 2021, arXiv 2011.09157."""

    dense_weight: float = Field(default=0.5, ge=0, le=1)  # λ, of the cells' loss; 0 is MoCo v2
    temperature: float = Field(default=0.2, gt=0)  # similarities are divided by it
    momentum: float = Field(default=0.999, ge=0, lt=1)  # of the key network
    queue: int = Field(default=65536, ge=1)  # keys that are remembered
    hidden: int = Field(default=0, ge=0)  # of the heads; 0: the backbone's width
    out: int = Field(default=128, ge=2)  # features that are compared


class MECSettings(StrictConfig):
    """Liu et al. 2022, arXiv 2210.11464."""

    mode: Literal["exact", "taylor"] = "exact"  # taylor: the paper's; holds only while features stay spread
    form: Literal["batch", "feature"] = "batch"  # the same number; the smaller of batch and `out` is the cheaper
    distortion: float = Field(default=0.06, gt=0)  # ε_d, the square of the error that coding may make
    distortion_warmup: float = Field(default=8.0, ge=1)  # times ε_d at first, falling to 1
    warmup: float = Field(default=0.1, ge=0, le=1)  # share of training in which it falls
    momentum: float = Field(default=0.996, ge=0, lt=1)  # of the teacher, rising to 1
    hidden: int = Field(default=2048, ge=2)  # of the projector
    out: int = Field(default=2048, ge=2)  # features that are coded
    predictor: int = Field(default=512, ge=2)  # its middle


class CIMSettings(StrictConfig):
    """Fang et al. 2023, arXiv 2202.03382."""

    objective: Literal["restore", "detect"] = "restore"  # ResPix, RevDet
    tokens: Literal["sample", "argmax", "uniform"] = "sample"  # how the generator's tokens are drawn
    masked: tuple[float, float] = (0.5, 0.6)  # share of cells, drawn for each batch
    window: int = Field(default=8, ge=2)  # of normalised pixels
    weight: float = Field(default=0.0, ge=0)  # of the enhancer's loss; 0: 1 to restore, 10 to detect
    codes: int = Field(default=256, ge=2)  # of the tokenizer
    tokenizer_epochs: float = Field(default=5, gt=0, le=1e6)  # before the method itself begins
    generator_dim: int = Field(default=128, ge=32, multiple_of=32)  # of its tokens
    generator_layers: int = Field(default=2, ge=1)  # 4 to 6 in the paper

    @field_validator("masked")
    @classmethod
    def _masked_is_a_share(cls, masked: tuple[float, float]) -> tuple[float, float]:
        if not 0 < masked[0] <= masked[1] <= 1:
            raise ValueError("expected two shares, the smaller first, above 0 and at most 1")
        return masked


class STORSettings(StrictConfig):
    """The method of the authors' CSTP code; each weight at 0 leaves its part out."""

    contrastive: float = Field(default=0.1, ge=0)  # weight of the two clips' agreement (BYOL)
    spatial: float = Field(default=1.0, ge=0)  # of the question how much of the frame they share
    temporal: float = Field(default=1.0, ge=0)  # of the question how much of the time they share
    pace: float = Field(default=1.0, ge=0)  # of each clip's pace
    rotation: float = Field(default=1.0, ge=0)  # of each clip's rotation; without it clips are not turned
    paces: int = Field(default=4, ge=1, le=8)  # 1, 2, 4, … times as fast
    momentum: float = Field(default=0.996, ge=0, lt=1)  # of the teacher
    hidden: int = Field(default=4096, ge=2)  # of the projector and the predictor
    out: int = Field(default=512, ge=2)  # features that are to agree
    projector: bool = True  # the authors' R(2+1)D has one, their other backbones none
    strong: float = Field(default=0.3, ge=0, le=1)  # share of clips that are tilted, coloured and blurred


class VideoSettings(StrictConfig):
    """How videos become clips."""

    frames: int = Field(default=16, ge=2)  # of a clip
    rate: float = Field(default=25.0, ge=0.01, le=240)  # frames a second at pace 1
    side: int = Field(default=0, ge=0)  # pixels of a side that are kept, of which clips are cut; 0: 8/7 of `size`
    longest: float = Field(default=60.0, gt=0)  # seconds of a video, from its middle
    pace: int = Field(default=4, ge=1)  # of the clips that are encoded once it is learnt
    clips: int = Field(default=4, ge=1)  # of a video, evenly spread, whose mean is its vector


class CrossModalSettings(StrictConfig):
    """Liu et al. 2021, arXiv 2106.05438."""

    modalities: tuple[Literal["image", "text", "audio"], ...] = ("image", "text", "audio")  # that share one space
    languages: tuple[str, ...] = ()  # of captions and speech; none: all
    more_data: tuple[Path, ...] = ()  # further tables, all of whose rows are learnt from
    repeat: int = Field(default=1, ge=1)  # times that a thing of `data` is seen for once of those of `more_data`
    dim: int = Field(default=64, ge=2)  # of features and codes
    out: int = Field(default=128, ge=2)  # of vectors
    width: int = Field(default=128, ge=2)  # inside the networks of text and sound
    codes: int = Field(default=256, ge=0)  # V; 0: vectors are continuous alone
    code_matching_weight: float = Field(default=0.1, ge=0)  # α, of code matching
    commitment: float = Field(default=0.25, ge=0)  # β, of features that stay near their codes
    warm_start: float = Field(default=0.3, ge=0, le=1)  # share of training before codes begin
    patience: int = Field(default=300, ge=1)  # steps after which an unused code becomes a copy of a used one
    temperature: float = Field(default=0.07, gt=0)  # similarities are divided by it at first; then it is learnt
    composed: float = Field(default=0.3, ge=0, le=1)  # share of pictures put somewhere on a canvas
    words_dropped: float = Field(default=0.1, ge=0, lt=1)  # share of words that are not read
    frozen: dict[Literal["image", "text", "audio"], str] = Field(default={})  # encoders (KIND:NAME), kept as they are
    slots: int = Field(default=4, ge=1)  # features that a frozen encoder's vector is unfolded into

    @model_validator(mode="after")
    def _modalities_can_meet(self) -> CrossModalSettings:
        if len(set(self.modalities)) < 2 or len(set(self.modalities)) != len(self.modalities):
            raise ValueError("modalities: expected two or three, each once")
        if set(self.frozen) - set(self.modalities):
            raise ValueError("frozen: an encoder of a modality that is not among modalities")
        return self


class LabelsSettings(StrictConfig):
    """Chen et al. 2018, arXiv 1707.05495."""

    reads: Literal["image", "text"] = "image"  # what is labelled; without `encoder` 24 words of a text at most
    # of true labels, when they are asked for; order_free: the one that the model finds most probable comes next;
    # bce: none, each label by itself
    order: Literal["order_free", "frequent_first", "rare_first", "bce"] = "order_free"
    fewest: int = Field(default=10, ge=1)  # things that a label must stand in to be learnt
    hidden: int = Field(default=256, ge=2)  # of the LSTM
    attention: int = Field(default=128, ge=2)  # features in which parts and state are compared
    embedding: int = Field(default=64, ge=2)  # of what was said last
    width: int = Field(default=128, ge=2)  # of the network of texts
    preliminary_weight: float = Field(default=1.0, ge=0)  # β, of labels by themselves
    preliminary_first: float = Field(default=0.2, ge=0, le=1)  # share of training in which nothing is said yet
    moved: bool = True  # pictures are mirrored, recoloured and shrunk a little
    words_dropped: float = Field(default=0.1, ge=0, lt=1)  # share of words that are not read
    # for pictures artifact:FOLDER of an image encoder with the same backbone and size, whose weights training begins
    # from; for texts that of a retriever's encoder, or a folder or hub name, which reads tokens and stays as it is
    encoder: str = ""


class DiffusionSettings(StrictConfig):
    """A small text-to-image model: Ho et al. 2020, arXiv 2006.11239, with words by cross-attention."""

    sides: tuple[int, int] = (11, 14)  # smallest and largest pixels of a thing's side
    things: int = Field(default=2, ge=1, le=4)  # on a canvas at most
    canvases: int = Field(default=4096, ge=2)  # that count as an epoch; each is drawn anew
    patch: int = Field(default=4, ge=1)  # pixels of a side in a cell of the latents
    widths: tuple[int, ...] = Field(default=(64, 96), min_length=1)  # channels of each level of the U-Net
    attention: tuple[int, ...] = Field(default=(0,), min_length=1)  # levels, from 0, that read words
    text_dim: int = Field(default=64, ge=2)  # of words' features
    text_layers: int = Field(default=1, ge=0)  # of the words' transformer
    length: int = Field(default=12, ge=4)  # words of a prompt, and two
    captions_dropped: float = Field(default=0.1, ge=0, lt=1)  # share of pictures that are learnt without words
    momentum: float = Field(default=0.995, ge=0, lt=1)  # with which the weights that serve follow

    @field_validator("sides")
    @classmethod
    def _sides_are_a_range(cls, sides: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= sides[0] <= sides[1]:
            raise ValueError("expected two sides, the smaller first, of 2 pixels at least")
        return sides


class DRITSettings(StrictConfig):
    """Lee et al. 2020, arXiv 1905.01270. The paper's layout stands in configs/pretrain/drit_paper.yaml."""

    other: Path | None = None  # pictures of the second style, a folder or a table, as `data` are of the first
    styles: tuple[str, str] = ("first", "second")  # their names
    width: int = Field(default=16, ge=4)  # features of the first layers; 64 in the paper
    blocks: int = Field(default=1, ge=1)  # residual ones of each style's content encoder and generator; 3 in the paper
    attribute_blocks: int = Field(default=2, ge=1)  # of the attribute encoders; 3 in the paper
    attributes: int = Field(default=8, ge=1)  # numbers that an attribute is
    judge_width: int = Field(default=16, ge=4)  # of the judges of pictures; 64 in the paper
    judge_layers: int = Field(default=3, ge=1)  # 4 in the paper
    judge_scales: int = Field(default=2, ge=1)  # 3 in the paper
    judge_every: int = Field(default=3, ge=1)  # steps of which all but the last move the judge of contents alone
    judge_rate: float = Field(default=0.4, gt=0, le=1e3)  # of that judge, times loop.lr
    judge_clip: float = Field(default=5.0, ge=0)  # of its gradient's length; 0: none
    style: float = Field(default=1.0, ge=0)  # weight: contents that tell no style
    passing: float = Field(default=1.0, ge=0)  # weight: made pictures that pass as real
    cycle: float = Field(default=10.0, ge=0)  # weight: there and back again
    reconstruction: float = Field(default=10.0, ge=0)  # weight: pictures put together from their own parts
    kl: float = Field(default=0.01, ge=0)  # weight: attributes that are normally distributed
    content_size: float = Field(default=0.01, ge=0)  # weight: contents that are small beside their noise
    latent: float = Field(default=10.0, ge=0)  # weight: attributes that can be read from what is made with them
    mode_seeking: float = Field(default=1.0, ge=0)  # weight: pictures that differ as their attributes do; 0: DRIT
    mirror: bool = True  # half of the pictures
    shift: int = Field(default=2, ge=0)  # pixels that pictures are moved by at most

    @field_validator("styles")
    @classmethod
    def _styles_differ(cls, styles: tuple[str, str]) -> tuple[str, str]:
        if styles[0] == styles[1] or not all(styles):
            raise ValueError("expected two names that differ")
        return styles


class MultiTaskSettings(StrictConfig):
    """Vandenhende et al. 2020, arXiv 2001.06902 and 1904.02920."""

    dense: dict[str, Literal["segmentation", "depth", "edges", "saliency"]] = Field(default={})  # columns of maps
    attributes: tuple[str, ...] = ()  # columns of words, which become filters
    network: Literal["shared", "branched", "mti"] = "shared"  # mti: MTI-Net
    branching: list[list[list[str]]] = Field(default=[])  # groups of tasks at each stage, of `network: branched`
    width: int = Field(default=16, ge=4)  # features of a task at each scale, of MTI-Net
    early: float = Field(default=1.0, ge=0)  # weight of MTI-Net's first predictions, at each scale
    weighting: WeightingName = "equal"  # how the tasks' losses become one step (udr.weighting)
    weighting_settings: dict[str, float] = Field(default={})  # of the weighting, such as {period: 50} of dwa
    weights: dict[str, float] = Field(default={})  # factors of tasks' losses, before they are weighed
    flip: bool = True  # mirror half of the pictures

    @model_validator(mode="after")
    def _tasks_are_named_once(self) -> MultiTaskSettings:
        tasks = [*self.dense, *self.attributes]
        if len(set(tasks)) < len(tasks) or {"image", "split"} & set(tasks):
            raise ValueError("dense, attributes: each task has a column of its own")
        if unknown := set(self.weights) - set(tasks):
            raise ValueError(f"weights: {', '.join(sorted(unknown))} among no tasks")
        return self


class LoopSettings(StrictConfig):
    """How any method is trained."""

    epochs: float = Field(default=10, gt=0, le=1e6)  # passes over the pictures
    batch: int = Field(default=256, ge=2)  # pictures of a step, over all devices
    accumulate: int = Field(default=1, ge=1)  # parts that a step's batch is computed in
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"  # SimCLR's is LARS, DenseCL's and MEC's SGD
    lr: float = Field(default=2e-3, gt=0, le=1e3)  # at its height
    weight_decay: float = Field(default=1e-4, ge=0, le=1e3)  # not of biases and normalisations
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of SGD and LARS
    warmup: float = Field(default=0.1, ge=0, le=1)  # share of training in which the rate rises
    schedule: Literal["cosine", "late"] = "cosine"  # then, to 0; late: a line from half way on, level before it
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto: what the device is fast at
    checkpoint_every: int = Field(default=200, ge=1)  # steps
    clip: float = Field(default=0.0, ge=0)  # of the gradient's length; 0: none
    knn: int = Field(default=20, ge=1)  # neighbours of the online probe
    least_spread: float = Field(default=0.05, ge=0)  # of the features: below it training has collapsed and stops

    @model_validator(mode="after")
    def _parts_hold_pictures(self) -> LoopSettings:
        if self.batch % self.accumulate or self.batch // self.accumulate < 2:
            raise ValueError("accumulate: the batch must fall into equal parts of two pictures at least")
        return self


class PretrainConfig(StrictConfig):
    """One pre-training."""

    out: Path  # its folder
    method: Literal[
        "simclr", "densecl", "mec", "cim", "stor", "cross_modal", "multi_task", "labels", "drit", "diffusion"
    ]  # its own settings lie under its name
    # a folder of pictures, or a Parquet table; for stor a folder of videos, for cross_modal and diffusion a table with
    # captions (for diffusion of single things on white ground), for multi_task one with a column a task, for labels one
    # with lists of labels, for drit pictures of one style
    data: Path
    split: str | None = None  # of a table
    held_out: str | None = None  # split of a table whose pictures the online probe asks about; none: a tenth
    backbone: str = "conv"  # see embed.backbones, for stor embed.video_backbones, for multi_task embed.pyramids
    size: int = Field(default=32, ge=8)  # pixels of a side
    views: str = ""  # the augmentation (see training.augment); none: the method's own, for small pictures
    translator: Path | None = None  # of drit, by which views are also seen in the other style (OUT/encoder)
    translated: float = Field(default=0.5, ge=0, le=1)  # share of views that are
    seed: int = Field(default=0, ge=0, lt=2**32)  # of weights, order, views and masks
    loop: LoopSettings = LoopSettings()
    simclr: SimCLRSettings = SimCLRSettings()
    densecl: DenseCLSettings = DenseCLSettings()
    mec: MECSettings = MECSettings()
    cim: CIMSettings = CIMSettings()
    stor: STORSettings = STORSettings()
    video: VideoSettings = VideoSettings()
    cross_modal: CrossModalSettings = CrossModalSettings()
    labels: LabelsSettings = LabelsSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    drit: DRITSettings = DRITSettings()
    multi_task: MultiTaskSettings = MultiTaskSettings()

    @model_validator(mode="after")
    def _videos_lie_in_a_folder(self) -> PretrainConfig:
        if self.method == "stor" and (self.split or self.held_out or self.views):
            raise ValueError("stor reads a folder of videos by its own views: leave split, held_out and views out")
        if self.translator and self.method not in ("simclr", "densecl", "mec", "cim"):
            raise ValueError(f"translator: {self.method} makes no views of pictures that could be translated")
        if 0 < self.video.side < self.size:
            raise ValueError(f"video.side: clips of {self.size} pixels are cut from no smaller frames")
        return self

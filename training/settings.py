"""Every setting of the offline job; the defaults are the paper's choices (Li et al. 2023, arXiv 2305.04320).

Two are ours: texts are read as the sentence encoder was trained to, and vectors have unit norm, with a temperature. The
paper's raw BERT is `encoder: {pooling: cls, unit_norm: false}` and `train: {temperature: 1}` (`configs/paper.yaml`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from udr.config import StrictConfig
from udr.tasks.spec import NAME

__all__ = [
    "EncoderSettings",
    "EvaluationSettings",
    "LMSettings",
    "MiningSettings",
    "RunConfig",
    "TrainSettings",
    "WeightingName",
]

# those of udr.weighting
WeightingName = Literal["equal", "uncertainty", "dwa", "gradnorm", "mgda", "pcgrad", "cagrad", "gls", "rlw", "imtl"]
METHODS = ("zero_shot", "random", "bm25", "encoder", "epr", "epr_mined", "udr", "udr_unmixed")


class LMSettings(StrictConfig):
    """The frozen language model."""

    name: str = ""  # a local folder or a hub name; `fake` is a deterministic stand-in without weights
    revision: str = "main"  # of a hub name: a branch, tag or commit
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the device is fast at it
    device: str = "auto"  # auto: the GPU if there is one
    engine: Literal["transformers", "vllm"] = "transformers"  # in process, where no servers are named
    # in one forward pass; null: what suits the device (256 on a CPU, 512 there in float32, 2048 on a GPU)
    row_tokens: int | None = Field(default=None, ge=16)
    # addresses of OpenAI-compatible servers (vLLM, SGLang, …) that hold this LM and are asked instead of one in
    # process; `name` is then needed for its tokenizer. The command line's --scorer URL adds one
    servers: tuple[str, ...] = ()
    served_name: str = ""  # what the servers call it; none: `name`, or the folder's own name
    in_flight: int = Field(default=16, ge=1, le=1024)  # requests under way at once to one server
    timeout: float = Field(default=120, gt=0)  # seconds for one request
    patience: float = Field(default=120, ge=0)  # seconds that all servers may be down before the run stops
    key_file: Path | None = None  # holds the key that the servers want
    # compare the servers with the weights in the folder `name`, where it holds some; false: a quantised copy is meant
    check_weights: bool = True


class EncoderSettings(StrictConfig):
    """The sentence encoder both towers start from."""

    name: str = ""  # a local folder or a hub name
    shared: bool = False  # one network for both towers; the paper uses two
    pooling: Literal["auto", "cls", "mean"] = "auto"  # auto: what the encoder was trained with
    unit_norm: bool = True  # false is the paper's raw dot product (then temperature 1)
    max_tokens: int = Field(default=256, ge=8)  # of one text, cut beyond; never more than the encoder reads
    instruction_tokens: int = Field(default=64, ge=0)  # of the instruction at most
    query_instruction: bool = True  # false: the released code's variant
    demonstration_instruction: bool = True  # false with query_instruction false: the paper's ablation
    # whose demonstrations' outputs the encoder reads: all tasks', as published, or those of tasks with options alone.
    # Of free texts a small encoder learns to gather demonstrations that give one answer, and often the wrong one
    read_outputs: Literal["all", "options"] = "all"
    # of matrix products; weights and vectors stay float32; auto: bfloat16 where the device is fast at it
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    dropout: float | None = Field(default=None, ge=0, lt=1)  # while training; null: the encoder's own


class MiningSettings(StrictConfig):
    """Where candidates come from and how the LM judges them."""

    rounds: int = Field(default=3, ge=0)  # re-mining iterations after the first, lexical one; 0: no mining
    queries: int = Field(default=0, ge=0)  # training queries a task; 0: the whole train split (up to train_cap)
    fresh_queries: bool = False  # each round draws other queries: where LM calls are dear they teach more than old ones
    pool: int = Field(default=0, ge=0)  # propose from this many demonstrations only; 0: from all
    candidates: int = Field(default=50, ge=2)  # K: the top of each proposal
    scored: int = Field(default=0, ge=0)  # of those the LM scores this many, drawn uniformly; 0: all K
    # classification: draw scored candidates evenly over the labels, and queries too where the metric is macro-F1
    balanced: bool = False
    accumulate: bool = False  # train on the union of all rounds
    # cheaper feedback where there are options: compare them by the first tokens that tell them apart, or ask about the
    # gold option first and about the others only for the better half of a query's candidates.
    # What is lost by either has not been measured yet
    shortcut: Literal["none", "first_token", "halving"] = "none"
    gold_only: bool = False  # the released code's feedback: mean log-probability of the gold answer alone
    max_tokens: int = Field(default=1024, ge=16)  # demonstrations longer than this with a like query are left out


class TrainSettings(StrictConfig):
    """How the bi-encoder is fitted."""

    epochs: float = Field(default=30, gt=0, le=1e6)  # passes over all lists after the first proposal
    round_epochs: float = Field(default=10, gt=0, le=1e6)  # after each re-mining
    batch: int = Field(default=128, ge=1)  # queries in a step
    tasks_per_step: int = Field(default=1, ge=1)  # that the queries are of, drawn by the root of their size
    # how the losses of a step's tasks become one step (udr.weighting); the paper's steps have one task
    weighting: WeightingName = "equal"
    list_size: int = Field(default=8, ge=2)  # l: candidates of a query in a step
    list_sampling: Literal["uniform", "stratified"] = "uniform"  # stratified: always one of the best 5 and worst 5
    rank_weight: float = Field(default=0.8, ge=0, le=1)  # of L_rank; the rest is L_ib; 0: no rank loss
    pair_weight: Literal["lm_rank", "predicted_position"] = "lm_rank"  # the second: the released code's variant
    # left out of L_ib. text: the query and its equals, as published; output: also candidates that give the output of
    # the query or of its best candidate, for they are right for the same reason (with few labels: much of a batch)
    false_negatives: Literal["text", "output"] = "text"
    temperature: float = Field(default=0.05, ge=1e-6, le=1e6)  # similarities are divided by it
    lr: float = Field(default=1e-4, gt=0, le=1)  # of AdamW, at its height
    warmup: int = Field(default=500, ge=0)  # steps of linear rise, at most a tenth of all; linear fall after them
    weight_decay: float = Field(default=0.01, ge=0, le=100)  # of AdamW
    freeze_embeddings: bool = False  # keep the word vectors as they are (cheaper, for small encoders)
    multi_task: bool = True  # false: one encoder a task (the paper's ablation)
    checkpoint_every: int = Field(default=100, ge=1)  # steps

    @model_validator(mode="after")
    def _tasks_are_there_to_compare(self) -> TrainSettings:
        if not self.multi_task and (self.tasks_per_step > 1 or self.weighting != "equal"):
            raise ValueError("multi_task: false trains on one task at a time: leave out tasks_per_step and weighting")
        if self.tasks_per_step == 1 and self.weighting not in ("equal", "uncertainty", "dwa"):
            raise ValueError(
                f"weighting {self.weighting} compares the tasks of a step: set tasks_per_step to 2 or more"
            )
        return self


class EvaluationSettings(StrictConfig):
    """How retrievers are compared."""

    # retrievers that are compared, the last one against the best of the others; `encoder` is the untrained one,
    # `epr_mined` is EPR that may also learn from the lists which the unified retriever mined; `udr_unmixed` is `udr`
    # without the help of the untrained encoder (udr.mixture), which `udr` has on tasks that it was not trained on
    methods: tuple[str, ...] = Field(default=("zero_shot", "random", "bm25", "encoder", "epr", "udr"), min_length=1)
    # other sentence encoders to compare with, `{name: folder or hub name}`; each name is a method then
    encoders: dict[str, str] = Field(default_factory=dict)
    tasks: tuple[str, ...] = ()  # () means the training tasks; others are tasks the retriever never saw
    queries: int = Field(default=0, ge=0)  # test queries a task; 0: all
    budget: int = Field(default=2048, ge=16)  # tokens of a finished prompt, the answer included
    k: int = Field(default=8, ge=1)  # demonstrations for classification and multiple choice
    k_generation: int = Field(default=50, ge=1)  # at most this many for generation; the budget decides
    selection: Literal["top_k", "mmr", "dpp", "coverage", "balanced", "balanced_tags"] = "top_k"  # see udr.selection
    order: Literal["ascending", "descending", "random", "interleaved"] = "ascending"  # ascending: the best one last
    draws: int = Field(default=1000, ge=100)  # of the bootstrap

    @model_validator(mode="after")
    def _methods_are_known(self) -> EvaluationSettings:
        for name in self.encoders:
            if name in METHODS or not re.fullmatch(NAME, name):
                raise ValueError(f"encoders: {name!r} is the name of a method, or none that a folder could have")
        known = (*METHODS, *self.encoders)
        for name in self.methods:
            if name not in known:
                raise ValueError(f"methods: {name!r} is not one of {', '.join(known)}")
        return self


class RunConfig(StrictConfig):
    """One run of the pipeline, from proposals to the table."""

    out: Path  # the run folder
    tasks: tuple[str, ...] = Field(min_length=1)  # registry names, manifest names or YAML files
    data: Path | None = None  # folder with NAME.{parquet,jsonl,ndjson,csv}; hub tasks need none
    scores: Path | None = None  # the score cache; default: `scores.sqlite` beside the run folder
    seed: int = Field(default=0, ge=0, lt=2**31)  # of every draw: queries, candidates, batches, dropout, the bootstrap
    lm: LMSettings = LMSettings()
    encoder: EncoderSettings = EncoderSettings()
    mining: MiningSettings = MiningSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task is named twice")
        return tasks

    @model_validator(mode="after")
    def _models_are_named(self) -> RunConfig:
        if not self.lm.name or not self.encoder.name:
            raise ValueError("lm.name and encoder.name must be set to a local folder or a hub name")
        return self

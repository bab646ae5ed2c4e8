"""vLLM in this process: the engine answers the same reads as servers do, without HTTP between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udr.errors import MissingDependencyError, ScorerUnavailable, UDRError
from udr.scoring.endpoint import Read
from udr.scoring.model_config import context_length as own_length
from udr.scoring.model_config import model_fingerprint, read_config
from udr.scoring.served_lm import ServedLM
from udr.scoring.tokens import load_tokenizer

__all__ = ["VLLMReader", "build_vllm_lm"]


class VLLMReader:
    """Reads answered by a `vllm.LLM`."""

    offers = frozenset({"logprob_token_ids", "prompt_logprobs"})
    prompts_per_call = 1024

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def read(self, reads: Sequence[Read]) -> tuple[list[list[float] | None], UDRError | None]:
        """Nats of every read's targets; an engine in process answers all or raises.

        Raises:
            ScorerUnavailable: vLLM refuses one of them.
        """
        outputs = self._run([r.ids for r in reads], [_parameters(r) for r in reads])
        found: list[list[float] | None] = []
        for read, output in zip(reads, outputs, strict=True):
            size = len(read.targets)
            rows = output.prompt_logprobs[-size:] if read.whole else [output.outputs[0].logprobs[0]] * size
            found.append([min(0.0, float(row[t].logprob)) for row, t in zip(rows, read.targets, strict=True)])
        return found, None

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """What follows each prompt, greedily, up to the first newline."""
        parameters = {"temperature": 0.0, "max_tokens": max_new_tokens, "stop": ["\n"]}
        return [str(o.outputs[0].text) for o in self._run(prompts, [parameters] * len(prompts))]

    def close(self) -> None:
        """The engine ends with the process."""

    def _run(self, prompts: Sequence[Sequence[int]], parameters: Sequence[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        if not prompts:
            return []
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        try:
            return list(self.llm.generate(asked, [SamplingParams(**p) for p in parameters], use_tqdm=False))
        except ValueError as error:
            raise ScorerUnavailable(f"vLLM refuses a request ({str(error).splitlines()[0]})") from None


def _parameters(read: Read) -> dict[str, Any]:
    """One generated token that is thrown away, and the log-probabilities wanted."""
    common = {"temperature": 0.0, "max_tokens": 1, "detokenize": False}
    wanted = {"prompt_logprobs": 0} if read.whole else {"logprob_token_ids": list(read.targets)}
    return common | wanted


def build_vllm_lm(name: str, *, revision: str = "main", dtype: str = "auto", context_length: int = 4096) -> ServedLM:
    """Load an LM into vLLM in this process; it reads at most `context_length` tokens, or fewer if that is its own.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ScorerUnavailable: the model cannot be loaded.
    """
    try:
        from vllm import LLM
    except ImportError:
        raise MissingDependencyError("vllm", "vllm") from None
    tokens = load_tokenizer(name, revision)
    config = read_config(name, revision)
    length = min(own_length(config) or context_length, context_length)
    hub_revision = None if Path(name).is_dir() else revision
    try:
        llm = LLM(model=name, revision=hub_revision, dtype=dtype, max_model_len=length)
    except (OSError, ValueError, RuntimeError) as error:
        raise ScorerUnavailable(f"{name}: vLLM cannot load it ({str(error).splitlines()[0]})") from None
    kind = str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
    return ServedLM(VLLMReader(llm), tokens, f"{model_fingerprint(name, revision, config)}-{kind}-vllm", length)

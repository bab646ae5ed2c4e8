"""Where models run, and in which number type they run fast there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from udr.errors import ConfigError

__all__ = ["choose_device", "fast_dtype", "multiplies_int8"]

# of torch's names for what a CPU can do: Intel's and AMD's matrix and vector units, and Arm's
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
INT8_UNITS = ("amx_int8", "avx512_vnni", "avx_vnni")


def choose_device(device: str = "auto") -> str:
    """`auto` is the GPU if there is one.

    Raises:
        ConfigError: a name that torch does not know, or a device that this machine lacks.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda, cuda:NUMBER or mps") from None
    there = getattr(getattr(torch, wanted.type, None), "device_count", int)()
    if (wanted.index or 0) >= there:
        raise ConfigError(f"device {device!r}: not on this machine (of {wanted.type} it has {there})")
    return device


def fast_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """bfloat16 where the device multiplies it natively, else float32.

    A CPU without such a unit computes bfloat16 several times slower than float32, and a GPU that emulates it too.
    """
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device != "cpu":
        return "bfloat16"
    return "bfloat16" if _has_any(BFLOAT16_UNITS) else "float32"


def multiplies_int8() -> bool:
    """True where the CPU has a unit for int8; elsewhere products of 8 bits are emulated, and may even saturate."""
    return _has_any(INT8_UNITS)


def _has_any(units: Sequence[str]) -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(unit) for unit in units)

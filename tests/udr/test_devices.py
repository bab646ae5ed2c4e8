"""The number type that `auto` stands for follows what the device can multiply."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from udr.devices import choose_device, fast_dtype, multiplies_int8
from udr.encoder import build_encoder, load_encoder
from udr.errors import ConfigError


def pretend(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16"])
def test_a_cpu_that_multiplies_bfloat16_gets_it(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    pretend(monkeypatch, **{unit: True})
    assert fast_dtype("cpu") == "bfloat16"


def test_a_cpu_that_would_emulate_bfloat16_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, avx512_f=True, amx_bf16=False, avx512_bf16=False)
    assert fast_dtype("cpu") == "float32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert fast_dtype("cpu") == "float32"


@pytest.mark.parametrize("unit", ["amx_int8", "avx512_vnni", "avx_vnni"])
def test_int8_is_for_a_cpu_with_a_unit_for_it(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    pretend(monkeypatch, **{unit: True})
    assert multiplies_int8()
    pretend(monkeypatch, avx2=True, **{unit: False})
    assert not multiplies_int8()


def test_a_gpu_that_emulates_bfloat16_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    native = [True, False]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native.pop(0))
    assert [fast_dtype("cuda"), fast_dtype("cuda:1")] == ["bfloat16", "float32"]


def test_auto_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device() == device
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("cuda:3") == "cuda:3"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("foo", "device 'foo': expected auto, cpu, cuda"),
        ("", "device '': expected auto, cpu, cuda"),
        ("cuda", r"device 'cuda': not on this machine \(of cuda it has 0\)"),
        ("cuda:77", "device 'cuda:77': not on this machine"),
        ("meta", "device 'meta': not on this machine"),
    ],
)
def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, device: str, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=said):
        choose_device(device)


def test_an_encoder_keeps_the_precision_that_was_chosen_for_it(
    monkeypatch: pytest.MonkeyPatch, bert_folder: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, amx_bf16=True)
    encoder = build_encoder(str(bert_folder), precision="auto", device="cpu")
    encoder.save(tmp_path / "saved")
    pretend(monkeypatch)
    assert load_encoder(tmp_path / "saved", "cpu").precision == "bfloat16"
    assert build_encoder(str(bert_folder), precision="auto", device="cpu").precision == "float32"

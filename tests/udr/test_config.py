"""Settings: what is wrong is said in one line with place, key and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from udr.config import StrictConfig, load_config
from udr.errors import ConfigError


class Inner(StrictConfig):
    temperature: float = Field(default=0.05, gt=0)
    pooling: Literal["cls", "mean"] = "mean"


class Outer(StrictConfig):
    seed: int = 0
    names: tuple[str, ...] = ()
    inner: Inner = Inner()


def refusal(path: Path | None, overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\ninner: {temperature: 0.1}\n", encoding="utf-8")
    return path


def test_a_file_is_read_and_overrides_win_over_it(file: Path) -> None:
    config = load_config(Outer, file, ["seed=4", "inner.pooling=cls", "names=[a, b]"])
    assert config == Outer(seed=4, names=("a", "b"), inner=Inner(temperature=0.1, pooling="cls"))


def test_no_file_means_the_defaults() -> None:
    assert load_config(Outer) == Outer()


def test_the_resolved_copy_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    config = Outer(seed=5, names=("ä", "b: c"), inner=Inner(pooling="cls"))
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.dump_yaml(), encoding="utf-8")
    assert load_config(Outer, copy) == config
    assert list(yaml.safe_load(config.dump_yaml())) == ["seed", "names", "inner"]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sed=1", ["sed", "no such setting", "did you mean seed?"]),
        ("inner.temprature=1", ["inner.temprature", "did you mean temperature?"]),
        ("inner.temperature=0", ["inner.temperature", "greater than 0"]),
        ("inner.temperature=.inf", ["inner.temperature", "finite number"]),
        ("inner.temperature=1e400", ["inner.temperature", "finite number"]),
        ("inner.pooling=max", ["inner.pooling", "'cls' or 'mean'"]),
        ("seed=many", ["seed", "integer"]),
        ("seed", ["'seed'", "expected key=value"]),
        ("=1", ["expected key=value"]),
        ("seed.more=1", ["seed.more=1", "seed is not a group of settings"]),
        ("seed=[1", ["'seed=[1'", "not YAML"]),
        ("seed=2026-13-40", ["not YAML"]),
    ],
)
def test_a_bad_override_is_refused_with_key_and_reason(file: Path, override: str, parts: list[str]) -> None:
    message = refusal(file, [override])
    for part in parts:
        assert part in message


def test_a_bad_value_in_a_file_names_the_file(file: Path) -> None:
    file.write_text("inner:\n  temperature: -1\n", encoding="utf-8")
    assert refusal(file, []).startswith(f"{file}: inner.temperature: ")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"seed: 1\ninner: [1\n", ":3: not YAML"),
        (b"- 1\n- 2\n", "expected `key: value` lines"),
        (b"", "expected `key: value` lines"),
        (b"seed: \xff\n", "cannot be read (UnicodeDecodeError"),
        (b"seed: \x00\n", "not YAML"),
        (b"seed: 2026-13-40\n", "not YAML"),
        (b"1: 2\n", "1: "),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(file: Path, content: bytes, part: str) -> None:
    file.write_bytes(content)
    message = refusal(file, [])
    assert message.startswith(str(file))
    assert part in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read (FileNotFoundError" in refusal(tmp_path / "absent.yaml", [])


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        Outer().seed = 1  # type: ignore[misc]

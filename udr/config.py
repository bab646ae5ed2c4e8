"""Strict settings: YAML files, `key=value` overrides, and the resolved copy kept beside each artifact."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from udr.errors import ConfigError

__all__ = ["StrictConfig", "load_config"]


class StrictConfig(BaseModel):
    """Settings that refuse keys they do not know, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: object, where: str) -> Self:
        """Check `values` against the settings.

        Raises:
            ConfigError: names the place, the key and what is wrong with it; near keys for a misspelt one.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"]) or "(top level)"
            message = str(first["msg"])
            if first["type"] == "extra_forbidden":
                near = difflib.get_close_matches(key.split(".")[-1], _all_keys(cls), n=2)
                message = "no such setting" + (f"; did you mean {' or '.join(near)}?" if near else "")
            raise ConfigError(f"{where}: {key}: {message}") from None

    def dump_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _all_keys(cls: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, info in cls.model_fields.items():
        keys.append(name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys.extend(_all_keys(info.annotation))
    return keys


C = TypeVar("C", bound=StrictConfig)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: the file is absent, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error.__class__.__name__}: {error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-40
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise ConfigError(f"{path}{line}: not YAML ({problem})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level")
    return values


def load_config(cls: type[C], path: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read settings from a YAML file (or none), then apply `a.b=value` overrides; values are parsed as YAML.

    Raises:
        ConfigError: unreadable file, unknown key, value out of range, or an override without `=`.
    """
    values = read_yaml(path) if path else {}
    for override in overrides:
        key, equals, raw = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected key=value")
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {parent} is not a group of settings")
        try:
            node[leaf] = yaml.safe_load(raw)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"override {override!r}: the value is not YAML") from None
    return cls.parse(values, str(path) if path else "settings")

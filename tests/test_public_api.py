"""What the packages offer: every exported name is there and documented, and light modules stay light."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import embed
import serving
import training
import udr

PACKAGES = (udr, embed, serving, training)
HEAVY = ("torch", "transformers", "faiss", "datasets", "pyarrow", "bm25s", "matplotlib", "sentence_transformers")


def module_names() -> Iterator[str]:
    for package in PACKAGES:
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield found.name


MODULES = sorted(module_names())


@pytest.mark.parametrize("name", MODULES)
def test_every_exported_name_exists_and_is_named_once(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert [n for n in exported if not hasattr(module, n)] == []
    assert len(exported) == len(set(exported))
    if has_own_code(module):
        assert exported, f"{name} defines functions or classes, and no __all__"


@pytest.mark.parametrize("name", MODULES)
def test_every_exported_function_and_class_says_what_it_does(name: str) -> None:
    module = importlib.import_module(name)
    silent = []
    for exported in getattr(module, "__all__", []):
        value = getattr(module, exported)
        if inspect.isfunction(value) or inspect.isclass(value):
            words = value.__doc__ or ""
            generated = words.startswith(f"{exported}(")  # what dataclass and NamedTuple write by themselves
            if not words.strip() or generated:
                silent.append(exported)
    assert silent == []


@pytest.mark.parametrize("name", MODULES)
def test_every_module_with_code_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or not has_own_code(module)


def has_own_code(module: ModuleType) -> bool:
    own = (v for v in vars(module).values() if inspect.isfunction(v) or inspect.isclass(v))
    return any(getattr(v, "__module__", "") == module.__name__ for v in own)


@pytest.mark.parametrize(
    "names",
    [
        "udr, udr.prompt, udr.selection",
        "udr.types, udr.errors, udr.config, udr.tasks, udr.data",
        "udr.retriever, udr.mining, udr.evaluation, udr.index, udr.fakes",
        "training.cli, training.settings",
    ],
)
def test_light_modules_import_nothing_heavy(names: str) -> None:
    code = f"import json, sys, {names}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

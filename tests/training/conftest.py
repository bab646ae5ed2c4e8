"""The workbench's fixtures: a tiny encoder, a finished run, a tiny LM, and the command line in this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import write_encoder
from workbench import MANIFEST, Bench, Outcome, lay_out, mood_rows, paint_rows


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Runs of this process and of its children are compared bit by bit, so all of them use one thread."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that knows the words of both tasks."""
    rows = [*mood_rows(52), *paint_rows(52)]
    texts = [text for row in rows for text in row.values()] + [str(entry["instruction"]) for entry in MANIFEST]
    return write_encoder(tmp_path_factory.mktemp("encoder"), texts)


@pytest.fixture
def bench(tmp_path: Path, encoder_folder: Path) -> Bench:
    """A workbench of the test's own, with nothing run yet."""
    return lay_out(tmp_path / "bench", encoder_folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Bench:
    """A workbench whose pipeline ran from end to end without a break; tests only read it."""
    from training.evaluate import evaluate, index
    from training.run import mine_and_train, open_run

    made = lay_out(tmp_path_factory.mktemp("finished"), encoder_folder)
    run = open_run(made.settings())
    mine_and_train(run)
    index(run)
    evaluate(run)
    return made


@pytest.fixture
def copy(finished: Bench, tmp_path: Path) -> Bench:
    """A finished workbench of the test's own, to be changed or damaged."""
    made = Bench(tmp_path / "copy")
    shutil.copytree(finished.folder, made.folder)
    for path in (made.config, made.out / "config.yaml"):
        path.write_text(path.read_text().replace(str(finished.folder), str(made.folder)))
    return made


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory, make_lm: Callable[..., Any]) -> Path:
    """A causal LM of two layers that reads 256 tokens, saved as transformers saves it."""
    lm, folder = make_lm("gpt2"), tmp_path_factory.mktemp("lm")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def udr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the `udr` command in this process, as its entry point does."""
    from training.cli import main

    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["udr", *map(str, words)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        assert isinstance(code, int), f"not an exit code: {code}"
        return Outcome(code, out, err)

    return call

"""Every setting is documented where it stands, and the bundled runs are runs that could be started."""

from __future__ import annotations

import ast
import inspect
import io
import re
import shlex
import tokenize
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.main import get_command

import training.pretrain_settings as pretrain_settings
import training.settings as run_settings
from embed.backbones import build_backbone
from training.captioned import read_captioned
from training.cli import app
from training.pretrain import build_method
from training.pretrain_diffusion import build_diffusion, read_canvases
from training.pretrain_multi_task import build_multi_task, read_tasks
from training.pretrain_settings import PretrainConfig
from training.pretrain_translation import build_drit
from training.quickstart import fitting_sizes
from training.run import silent
from training.scenes import scenes_table
from training.settings import RunConfig
from training.shapes import shapes_table
from training.tokenizer import PictureTokenizer
from udr.config import StrictConfig, load_config
from udr.errors import ConfigError
from udr.tasks import load_spec

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted([*(ROOT / "training" / "configs").glob("*.yaml"), *(ROOT / "tests" / "benchmarks").glob("*.yaml")])
PRETRAIN = sorted((ROOT / "training" / "configs" / "pretrain").glob("*.yaml"))


@dataclass(frozen=True)
class Setting:
    """A field of a settings class, and where it stands."""

    group: str
    name: str
    node: ast.AnnAssign
    module: ModuleType

    def __str__(self) -> str:
        return f"{self.group}.{self.name}"


def settings_of(module: ModuleType) -> list[Setting]:
    return [
        Setting(group.name, field.target.id, field, module)
        for group in ast.parse(inspect.getsource(module)).body
        if isinstance(group, ast.ClassDef)
        for field in group.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]


SETTINGS = [*settings_of(run_settings), *settings_of(pretrain_settings)]


def comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


@pytest.mark.parametrize("module", [run_settings, pretrain_settings])
def test_the_parsed_fields_are_all_settings_there_are(module: ModuleType) -> None:
    groups = [v for v in vars(module).values() if inspect.isclass(v) and issubclass(v, StrictConfig)]
    wanted = {(g.__name__, name) for g in groups if g is not StrictConfig for name in g.model_fields}
    assert {(s.group, s.name) for s in settings_of(module)} == wanted


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_setting_carries_a_comment(setting: Setting) -> None:
    """In its line or the one above; a group of settings has its class's docstring."""
    field, source = setting.node, inspect.getsource(setting.module)
    if ast.unparse(field.annotation).endswith("Settings"):
        assert inspect.getdoc(getattr(setting.module, ast.unparse(field.annotation)))
        return
    lines, told = range(field.lineno, (field.end_lineno or field.lineno) + 1), comments(source)
    own_line = source.splitlines()[field.lineno - 2].strip()
    above = told.get(field.lineno - 1, "") if own_line.startswith("#") else ""
    comment = above + "".join(told.get(line, "") for line in lines)
    assert len(comment) >= 5, f"{setting}: say what it is, in its line"


def test_the_papers_choices_are_the_defaults() -> None:
    config = RunConfig.parse({"out": "x", "tasks": ["sst2"], "lm": {"name": "a"}, "encoder": {"name": "b"}}, "test")
    assert config.mining.rounds == 3
    assert config.mining.candidates == 50
    assert config.train.rank_weight == 0.8
    assert (config.train.epochs, config.train.round_epochs) == (30, 10)
    assert config.train.lr == 1e-4
    assert config.evaluation.k == 8
    assert not config.encoder.shared


@pytest.mark.parametrize("path", CONFIGS, ids=[str(p.relative_to(ROOT)) for p in CONFIGS])
def test_a_bundled_run_parses_and_its_tasks_are_known(path: Path) -> None:
    config = load_config(RunConfig, path)
    assert [load_spec(name).name for name in config.tasks] == list(config.tasks)
    for name in config.evaluation.tasks:
        load_spec(name)
    assert set(yaml.safe_load(path.read_text())) <= set(RunConfig.model_fields)


@pytest.mark.parametrize("path", PRETRAIN, ids=[p.stem for p in PRETRAIN])
def test_a_bundled_pre_training_could_be_started(path: Path, tmp_path: Path) -> None:
    config = load_config(PretrainConfig, path)
    assert config.method == path.stem.removesuffix("_paper")
    if config.method in ("cross_modal", "labels"):  # whose networks are made for the material
        build_backbone(config.backbone, config.size)
        return
    if config.method == "diffusion":  # it has no encoder's backbone
        shapes_table(tmp_path / "shapes.parquet")
        canvases = read_canvases(config, read_captioned(tmp_path / "shapes.parquet"))
        assert build_diffusion(config, canvases)[0].backbone.unet.config.sample_size * 4 == config.size
        return
    if config.method == "drit":
        assert build_drit(config).backbone.size == config.size
        return
    if config.method == "multi_task":
        scenes_table(tmp_path / "scenes.parquet", 40, size=config.size)
        data, _ = read_tasks(config.model_copy(update={"data": tmp_path / "scenes.parquet"}), silent)
        assert set(build_multi_task(config, data).tasks) == {*config.multi_task.dense, *config.multi_task.attributes}
        return
    assert build_method(config, PictureTokenizer(config.cim.codes)).backbone.size == config.size


@pytest.mark.parametrize("path", [*CONFIGS, *PRETRAIN], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_bundled_run_begins_with_the_command_that_starts_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    found = re.search(r"udr \w+[^(]*", first)
    assert first.startswith("# ")
    assert found, "the first line is no command"
    words = shlex.split(found[0])[1:]
    command = get_command(app).commands[words[0]]
    command.make_context("udr", words[1:])
    named = [word for word in words if word.endswith(".yaml")]
    assert [str(path.relative_to(ROOT))] == named or not named


def test_a_setting_cannot_be_changed_after_it_was_checked() -> None:
    config = RunConfig.parse({"out": "x", "tasks": ["sst2"], "lm": {"name": "a"}, "encoder": {"name": "b"}}, "test")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_the_saved_copy_of_the_settings_is_the_settings_again(tmp_path: Path) -> None:
    for path in CONFIGS:
        config = load_config(RunConfig, path, ["data=somewhere", "evaluation.tasks=[sst2]"])
        copy = tmp_path / path.name
        copy.write_text(config.dump_yaml())
        assert load_config(RunConfig, copy) == config


def test_models_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"lm.name and encoder.name must be set"):
        RunConfig.parse({"out": "x", "tasks": ["sst2"]}, "test")


@pytest.mark.parametrize(("speed", "queries", "asked"), [(9000.0, 120, 25), (500.0, 60, 12), (1.0, 42, 9)])
def test_the_quickstart_takes_as_many_queries_as_the_lm_is_quick(speed: float, queries: int, asked: int) -> None:
    config = load_config(RunConfig, Path(run_settings.__file__).parent / "configs" / "quickstart.yaml")
    assert fitting_sizes(config, speed) == [f"mining.queries={queries}", f"evaluation.queries={asked}"]

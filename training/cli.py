"""The `udr` command: parse, call, print. The logic lives in the modules it calls."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from training import cli_media, cli_multi_task, cli_pictures, cli_synthesis
from training.cli_materials import data_app, lm_app, tasks_app
from training.cli_scores import scores_app
from training.printing import Json, print_result
from training.settings import RunConfig
from udr.config import load_config
from udr.errors import ConfigError, MissingDependencyError, UDRError, is_out_of_memory

if TYPE_CHECKING:
    from training.run import Run

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(tasks_app, name="tasks")
app.add_typer(data_app, name="data")
app.add_typer(lm_app, name="lm")
app.add_typer(scores_app, name="scores")
cli_pictures.add_commands(app)
cli_media.add_commands(app)
cli_synthesis.add_commands(app)
cli_multi_task.add_commands(app)

console = Console(stderr=True)
# what each part of the pipeline cannot do without, and the extra that brings it
EXTRAS = {"torch": "lm", "transformers": "lm", "safetensors": "lm", "httpx2": "lm", "pyarrow": "train"}
EXTRAS |= dict.fromkeys(("fastapi", "uvicorn", "sqlalchemy", "alembic", "structlog", "pydantic_settings"), "serve")
EXTRAS |= {
    "PIL": "embed",
    "av": "embed",
    "soundfile": "embed",
    "soxr": "embed",
    "kornia": "pretrain",
    "accelerate": "lm",
    "diffusers": "synthesize",
    "matplotlib": "eval",
    "sacrebleu": "eval",
    "rouge_score": "eval",
}

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML settings of the run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]
Round = Annotated[int, typer.Option("--round", min=0, help="Mining round; 0 is the lexical one.")]
RetrieverFolder = Annotated[Path, typer.Option("--retriever", help="A retriever folder (OUT/retriever of a run).")]
TaskName = Annotated[str, typer.Option("--task", help="A task of the retriever, or a .jsonl/.csv/.parquet/.yaml file.")]
Scorers = Annotated[
    list[str] | None,
    typer.Option("--scorer", metavar="URL", help="An LLM server that holds the LM, instead of one in process; repeat."),
]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="One or more inputs.")]
TopK = Annotated[int, typer.Option("--k", min=1, help="How many demonstrations.")]
Selection = Annotated[str, typer.Option(help="top_k, mmr, dpp, coverage, balanced or balanced_tags.")]


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _with_servers(overrides: list[str] | None, scorers: list[str] | None) -> list[str]:
    """The settings that stand in for --scorer."""
    return [*(overrides or ()), *([f"lm.servers={json.dumps(scorers)}"] if scorers else ())]


@contextmanager
def _opened(config: Path, overrides: list[str] | None) -> Iterator[Run]:
    """A run folder that no other command is at work in."""
    from training import run as pipeline
    from training.progress import hush_transformers, reporting

    hush_transformers()
    settings = load_config(RunConfig, config, overrides or ())
    with (
        reporting(console) as report,
        pipeline.alone_in(settings.out),
        closing(pipeline.open_run(settings, report)) as run,
    ):
        yield run


def _run(config: Path, overrides: list[str] | None, *stages: str, number: int = 0) -> Any:
    with _opened(config, overrides) as run:
        from training import evaluate as evaluation
        from training import run as pipeline

        if number > (last := run.config.mining.rounds):
            raise ConfigError(
                f"--round {number}: mining.rounds is {last}; for more give another out=FOLDER a larger one"
            )
        result: Any = None
        if "evaluate" in stages:
            evaluation.evaluated_tasks(run)  # before hours of mining
        for stage in stages:
            if stage == "mine":
                pipeline.mine_and_train(run)
            elif stage == "index":
                result = evaluation.index(run)
            elif stage == "evaluate":
                result = evaluation.evaluate(run)
            else:
                result = getattr(pipeline, stage)(run, number)
        return result


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, scorers: Scorers = None, as_json: Json = False) -> None:
    """The whole pipeline from a config: mine, score, train, re-mine, index, evaluate. Run again to resume."""
    stages = ["mine", "index", "evaluate"]
    overrides = _with_servers(overrides, scorers)
    if not load_config(RunConfig, config, overrides or ()).train.multi_task:
        stages.remove("index")  # single-task encoders (an ablation) have no common index
    table = _run(config, overrides, *stages)
    print_result(table.as_json(), as_json, table.markdown())


@app.command()
def propose(config: ConfigFile, overrides: Overrides = None, number: Round = 0, scorers: Scorers = None) -> None:
    """Candidates of one round: BM25 in round 0, the encoder of the round before after that."""
    _run(config, _with_servers(overrides, scorers), "propose", number=number)


@app.command()
def score(
    config: ConfigFile,
    overrides: Overrides = None,
    number: Round = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell pairs, tokens and time, after a few pairs to learn the speed.")
    ] = False,
    scorers: Scorers = None,
    as_json: Json = False,
) -> None:
    """LM scores and ranks of one round's candidates."""
    overrides = _with_servers(overrides, scorers)
    if not dry_run:
        _run(config, overrides, "score", number=number)
        return
    from udr.scoring.estimate import Estimate

    found = _run(config, overrides, "estimate_score", number=number)
    rows = {**found, "all": sum(found.values(), Estimate(0, 0, 0, 0, 0.0))}
    lines = [f"{'task':22} {'pairs':>12} {'requests':>12} {'known':>12} {'tokens':>15} {'time':>9}"]
    for name, e in rows.items():
        left = str(timedelta(seconds=round(e.seconds)))
        lines.append(f"{name:22} {e.pairs:12,} {e.requests:12,} {e.known:12,} {e.tokens:15,} {left:>9}")
    print_result({name: dataclasses.asdict(e) for name, e in rows.items()}, as_json, "\n".join(lines))


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    number: Round = 0,
    feedback: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=FILE", help="One more round, on outcomes that the service exported; repeat."),
    ] = None,
    scorers: Scorers = None,
) -> None:
    """List-wise training on one round's ranked lists."""
    overrides = _with_servers(overrides, scorers)
    if not feedback:
        _run(config, overrides, "train", number=number)
        return
    from training.feedback import train_on_feedback

    if number:
        raise ConfigError("--round: --feedback makes the round after the last one; leave --round out")
    with _opened(config, overrides) as run:
        files = {task: Path(file) for task, file in (_named("--feedback", feedback, "TASK=FILE") or {}).items()}
        typer.echo("\n".join(train_on_feedback(run, files)))


@app.command()
def index(config: ConfigFile, overrides: Overrides = None) -> None:
    """Encode and index every pool with the final encoder."""
    typer.echo(str(_run(config, overrides, "index")))


@app.command()
def evaluate(config: ConfigFile, overrides: Overrides = None, scorers: Scorers = None, as_json: Json = False) -> None:
    """Answer test queries with every method's demonstrations and print one table."""
    table = _run(config, _with_servers(overrides, scorers), "evaluate")
    print_result(table.as_json(), as_json, table.markdown())


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a folder of them.")] = Path("runs"),
    page: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the newest as a page.")] = None,
    as_json: Json = False,
) -> None:
    """What folders of runs and pre-trainings hold: how far, losses, scores; --page shows the newest with its plots."""
    from rich.console import Console

    from training.progress import reporting
    from training.run_page import run_page
    from training.runs import read_runs
    from udr.artifacts import write_atomically

    with reporting(Console(stderr=True)):  # warnings are lines
        found = read_runs(folder)
    if page is not None:
        write_atomically(page, run_page(found[0]).encode())
        _tell(f"{page}: {found[0].folder}")
    lines = [f"{one.folder}  {one.summary}" for one in found]
    print_result([one.as_json() for one in found], as_json, "\n".join(lines))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for models, data and the run.")] = Path("quickstart"),
) -> None:
    """The main job on real parts: Gemma 3 270M, MiniLM and BIG-bench tasks, from nothing to an answered prompt."""
    from training.progress import hush_transformers
    from training.quickstart import quickstart as start

    hush_transformers()
    start(out, console)


@app.command()
def retrieve(
    retriever: RetrieverFolder,
    task: TaskName,
    inputs: Inputs,
    k: TopK = 8,
    selection: Selection = "top_k",
    as_json: Json = False,
) -> None:
    """Demonstrations for new inputs, best first."""
    from training.progress import hush_transformers
    from training.serve_once import as_queries, open_retriever

    hush_transformers()
    opened = open_retriever(retriever, task, _tell)
    found = opened.retrieve(as_queries(inputs), k, selection=selection)
    rows = [
        {
            "input": text,
            "demonstrations": [{**_demonstration(f.demonstration), "similarity": f.similarity} for f in own],
        }
        for text, own in zip(inputs, found, strict=True)
    ]
    lines = []
    for text, own in zip(inputs, found, strict=True):
        lines.append(f"# {text}")
        lines += [f"{f.rank:3d}  {f.similarity:7.4f}  {_one_line(f.demonstration)}" for f in own]
    print_result(rows, as_json, "\n".join(lines))


@app.command()
def prompt(
    retriever: RetrieverFolder,
    task: TaskName,
    inputs: Inputs,
    lm: Annotated[str, typer.Option(help="The LM whose tokenizer counts (folder, hub name, or fake).")],
    budget: Annotated[int, typer.Option(min=1, help="Tokens of the finished prompt and of --reserve.")] = 2048,
    reserve: Annotated[int, typer.Option(min=0, help="Tokens kept for the answer.")] = 0,
    k: TopK = 8,
    selection: Selection = "top_k",
    order: Annotated[str, typer.Option(help="ascending, descending, random or interleaved.")] = "ascending",
    answer: Annotated[
        bool, typer.Option("--answer", help="The LM's answer too: a label where the task has labels, else text.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The finished prompt for new inputs, within a token budget."""
    from training.progress import hush_transformers
    from training.serve_once import make_prompts

    hush_transformers()
    rows = make_prompts(retriever, task, inputs, lm, budget, reserve, k, selection, order, answer, _tell)
    texts = []
    for row in rows:
        texts.append(row["text"] + (f" {row['answer']}" if answer else ""))
        texts += [f"[dropped {d['demonstration_id']}: {d['reason']}]" for d in row["dropped"]]
    print_result(rows, as_json, "\n\n".join(texts))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port (8000).")] = None,
    database: Annotated[str | None, typer.Option(help="sqlite:///FILE or postgresql+psycopg://…")] = None,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder: folder, hub name, auto or none.")] = None,
    retriever: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a trained retriever, or NAME=st:… of an encoder; repeat.")
    ] = None,
    tokenizer: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of an LM's tokenizer; repeat.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes (1).")] = None,
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="LLM server behind the OpenAI-compatible routes.")
    ] = None,
) -> None:
    """Serve pools, retrieval and prompts over HTTP; UDR_… environment variables set the rest."""
    service = import_module("serving.app")  # by name: the two rooms do not know each other
    given: dict[str, object] = {"host": host, "port": port, "database": database, "encoder": encoder}
    given |= {"workers": workers, "upstream": upstream}
    given |= {"retrievers": _named("--retriever", retriever), "tokenizers": _named("--tokenizer", tokenizer)}
    settings = import_module("serving.settings").parse_settings({k: v for k, v in given.items() if v is not None})
    service.serve(settings)


@app.command()
def snapshot(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    database: Annotated[str | None, typer.Option(help="sqlite:///FILE; default: the service's.")] = None,
) -> None:
    """Copy the service's SQLite database as it is at one moment, while it is served."""
    size = import_module("serving.sql.snapshot").snapshot(_database(database), file)
    typer.echo(f"{file}: {size / 1e6:.1f} MB")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `udr snapshot` wrote.")],
    database: Annotated[str | None, typer.Option(help="sqlite:///FILE; default: the service's.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Forget the database that is there.")] = False,
) -> None:
    """Put a snapshot in the place of the service's SQLite database, while it is not served."""
    import_module("serving.sql.snapshot").restore(file, _database(database), replace=replace)
    typer.echo(f"{file}: restored")


def _database(given: str | None) -> str:
    settings = import_module("serving.settings").parse_settings({} if given is None else {"database": given})
    found: str = settings.database
    return found


def _named(option: str, pairs: list[str] | None, form: str = "NAME=FOLDER") -> dict[str, str] | None:
    """Options of a form such as NAME=FOLDER as a mapping; None where there are none."""
    if not pairs:
        return None
    if any(not all(pair.partition("=")) for pair in pairs):
        raise ConfigError(f"{option}: expected {form}")
    found: dict[str, str] = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        if name in found:
            raise ConfigError(f"{option}: {name} is given twice; leave one out")
        found[name] = value
    return found


def _demonstration(demonstration: Any) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(demonstration).items() if value}


def _one_line(demonstration: Any) -> str:
    text = f"{demonstration.input} → {demonstration.output}".replace("\n", " ⏎ ")
    return text if len(text) <= 160 else f"{text[:100]} … {text[-58:]}"


def main() -> None:
    """Run the command line; an error we raise on purpose is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except UDRError as error:
        sys.exit(_complain(str(error)))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        sys.exit(_complain(str(MissingDependencyError(error.name or "", extra))))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(
            _complain(
                "out of memory; make lm.row_tokens, train.batch or encoder.max_tokens smaller (of a pre-training "
                "loop.batch, or loop.accumulate larger) and run again"
            )
        )
    except OSError as error:  # a full disk, a forbidden folder: the user's to mend
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_complain(f"{where}{error.strerror or error}"))


def _complain(message: str) -> int:
    print("udr: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()

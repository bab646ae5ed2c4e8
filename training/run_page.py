"""A run folder as one page of HTML that needs nothing beside itself: no script, no picture elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from training.pretrain_runs import PretrainState
from training.runs import RoundState, RunState, Scores

__all__ = ["run_page"]

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; }
svg { vertical-align: middle; fill: #3973ac; stroke: none; }
svg polyline { fill: none; stroke: #3973ac; stroke-width: 1.5; }
img { max-width: 100%; background: #fff; }
summary { cursor: pointer; }
pre { overflow-x: auto; }
"""
_WIDTH, _HEIGHT = 120, 24  # pixels of a histogram


def run_page(run: RunState | PretrainState) -> str:
    """The page of a run: its rounds, the distribution of LM scores, losses, tables and plots; or of a pre-training."""
    return "".join(_parts(run))


def _parts(run: RunState | PretrainState) -> Iterator[str]:
    title = escape(str(run.folder))
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
    when = datetime.fromtimestamp(run.changed, UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield f"<h1>{title}</h1><p>{escape(run.stage)}; last changed {when}</p>"
    if isinstance(run, RunState):
        yield from _results(run)
    else:
        yield f"<p>{escape(run.summary)}</p>"
    for name, path in run.plots.items():
        picture = base64.b64encode(path.read_bytes()).decode()
        yield f'<h2>{escape(name)}</h2><img alt="{escape(name)}" src="data:image/png;base64,{picture}">'
    yield f"<details><summary>Settings</summary><pre>{escape(run.settings.dump_yaml())}</pre></details>"
    yield "</main></body></html>\n"


def _results(run: RunState) -> Iterator[str]:
    for name, table in run.tables.items():
        yield f"<h2>Evaluation{'' if name == 'table' else ': ' + escape(name.removeprefix('table-'))}</h2>"
        yield from _table(table)
    for one in run.rounds:
        yield from _round(one)


def _table(table: dict[str, object]) -> Iterator[str]:
    scores: dict[str, dict[str, float]] = table["scores"]  # type: ignore[assignment]
    methods, rows = list(scores), list(next(iter(scores.values()), {}))
    yield "<table><thead><tr><th scope=col>task</th>"
    yield from (f"<th scope=col>{escape(m)}</th>" for m in methods)
    yield "</tr></thead><tbody>"
    for row in rows:
        values = [scores[m][row] for m in methods]
        yield f"<tr><th scope=row>{escape(row)}</th>"
        yield from (f"<td{' class=best' if v == max(values) else ''}>{v:.1f}</td>" for v in values)
        yield "</tr>"
    yield "</tbody></table>"


def _round(one: RoundState) -> Iterator[str]:
    yield f"<h2>Round {one.number}</h2>"
    trained = "under way" if one.training else "not yet"
    if one.losses:
        trained = f"{one.steps} steps, loss {one.losses[0]:.3f} → {one.losses[-1]:.3f} {_line(one.losses)}"
    heads = ("task", "queries", "pairs", "median score (nats)", "best less worst", "LM scores")
    yield f"<p>Training: {trained}</p><table><thead><tr>"
    yield from (f"<th scope=col>{head}</th>" for head in heads)
    yield "</tr></thead><tbody>"
    for task in one.proposed:
        scores = one.scored.get(task)
        cells = _cells(scores) if scores else "<td colspan=5>not scored yet</td>"
        yield f"<tr><th scope=row>{escape(task)}</th>{cells}</tr>"
    yield "</tbody></table>"


def _cells(scores: Scores) -> str:
    if not scores.pairs:
        return f"<td>{scores.lists}</td><td>0</td><td></td><td></td><td></td>"
    low, _, middle, _, high = scores.quantiles
    told = f"from {low:.2f} to {high:.2f} nats"
    return (
        f"<td>{scores.lists}</td><td>{scores.pairs}</td><td>{middle:.2f}</td><td>{scores.spread:.2f}</td>"
        f"<td>{_bars(scores.counts, told)}</td>"
    )


def _bars(counts: Sequence[int], told: str) -> str:
    wide, most = _WIDTH / len(counts), max(counts)
    bars = "".join(
        f'<rect x="{i * wide:.1f}" y="{_HEIGHT - h:.1f}" width="{wide - 1:.1f}" height="{h:.1f}"/>'
        for i, n in enumerate(counts)
        if (h := _HEIGHT * n / most)
    )
    return f'<svg role="img" aria-label="{told}" width="{_WIDTH}" height="{_HEIGHT}"><title>{told}</title>{bars}</svg>'


def _line(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    step, scale = _WIDTH / max(1, len(values) - 1), (_HEIGHT - 2) / ((high - low) or 1)
    points = " ".join(f"{i * step:.1f},{_HEIGHT - 1 - (v - low) * scale:.1f}" for i, v in enumerate(values))
    return f'<svg aria-hidden="true" width="{_WIDTH}" height="{_HEIGHT}"><polyline points="{points}"/></svg>'

"""The report of an experiment: one self-contained HTML file.

It has no script and makes no network requests: its images are embedded, and a policy in its head
forbids the rest. All text is escaped, because labels come from users' files.
"""

import base64
import html
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from cryjax.command.files import whole
from cryjax.evaluation import tables
from cryjax.evaluation.figures.experiment import label_efficiency_figure, rocs_figure
from cryjax.evaluation.figures.maps import FEWEST, map_figure, project
from cryjax.evaluation.figures.style import BLUE, short
from cryjax.evaluation.figures.training import training_figure
from cryjax.evaluation.metrics import metric_name, winners
from cryjax.evaluation.results import Experiment, Scores, Task, method_name

# Metrics not worth a panel; and how many panels and runs stay readable.
_DULL = {"step", "learning_rate", "gradient_norm", "clips_per_second", "seconds"}
_MOST_PANELS, _MOST_RUNS = 4, 16

_CSS = """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1180px;
 margin:0 auto;padding:0 16px 48px;overflow-wrap:anywhere}
h1{font-size:1.8rem;line-height:1.2;margin:1.5rem 0 .75rem}
h2{font-size:1.4rem;margin:2.5rem 0 .5rem;padding-top:.6rem;border-top:2px solid #0072b2}
h3{font-size:1.1rem;margin:1.75rem 0 .5rem}
p,ul{max-width:48rem}
nav a{margin-right:1rem;color:#005a8e}
.banner{background:#d55e00;color:#000;padding:.6rem 16px;margin:0 -16px;max-width:none;
 font-weight:600}
.notes{border-left:4px solid #d55e00;background:#fdf3ec;padding:.6rem 1rem .6rem 2rem}
.scroll{overflow-x:auto;margin:.5rem 0 1.25rem}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;
 overflow-wrap:break-word}
caption{text-align:left;font-weight:600;padding:.25rem 0;white-space:nowrap}
th,td{padding:.3rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid #ddd;
 max-width:20rem}
thead th{border-bottom:2px solid #777}
tbody th{font-weight:500;position:sticky;left:0;background:#fff;max-width:min(16rem,38vw);
 padding-left:0}
thead th:first-child{padding-left:0}
small{display:block;white-space:nowrap;color:#555;font-weight:400}
.grid{display:grid;gap:1rem 1.5rem;
 grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr))}
.matrices{display:flex;flex-wrap:wrap;gap:0 2.5rem}
.matrices>*{max-width:100%}
figure{margin:0;min-width:0}
figure img{display:block;width:100%;max-width:560px;height:auto}
figcaption{font-size:.875rem;font-weight:600}
.matrices td{text-align:center;min-width:1.9rem;padding:.3rem .25rem;border:1px solid #fff;
 print-color-adjust:exact;-webkit-print-color-adjust:exact}
.matrices th{font-weight:400;border:0;padding:.3rem .4rem;white-space:nowrap;max-width:none}
.matrices thead th{text-align:center;vertical-align:bottom}
.turned{writing-mode:vertical-rl}
pre{background:#f5f5f5;padding:.75rem;overflow-x:auto;font-size:.8rem}
summary{cursor:pointer;padding:.25rem 0}
@media print{body{max-width:none;font-size:11pt}.scroll{overflow:visible}nav{display:none}
 pre{white-space:pre-wrap}figure,table{break-inside:avoid}h2,h3{break-after:avoid}}
"""
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
"""


def _text(value: Any) -> str:
    """A value of a config or a count, as text for a table cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(own)}" for name, own in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _scrolled(name: str, table: str) -> str:
    """A table in a box that can be scrolled, by keyboard too."""
    label = html.escape(name)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption>{label}</caption>{table}</table></div>"
    )


def _html_table(table: tables.Table) -> str:
    def cell(text: str) -> str:
        """Intervals and counts go on their own line; names may break after a plus."""
        text = re.sub(r" (\[[^]]*\]|\(n = \d+\))$", r" <small>\1</small>", html.escape(text))
        return re.sub(r"\+(?=[a-z])", "+<wbr>", text)

    head = "".join(f'<th scope="col">{cell(name)}</th>' for name in table.head)
    body = "".join(
        f'<tr><th scope="row">{cell(first)}</th>'
        + "".join(f"<td>{cell(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    return _scrolled(table.caption, f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def _confusion(name: str, labels: Sequence[str], scores: Scores) -> str:
    """A confusion matrix as a table: counts, cells shaded by the share of the true class."""
    predicted = winners(scores.scores)
    counts = confusion_matrix(scores.true, predicted, labels=range(len(labels)))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    blue = np.array([int(BLUE[i : i + 2], 16) for i in (1, 3, 5)])

    def cell(count: int, part: float) -> str:
        ground = "".join(f"{x:02x}" for x in (255 + part * (blue - 255)).astype(int))
        ink = "fff" if part > 0.85 else "000"
        return f'<td style="background:#{ground};color:#{ink}">{count}</td>'

    names = [html.escape(short(label, 24)) for label in labels]
    kind = ' class="turned"' if sum(map(len, names)) > 30 else ""
    heads = "".join(f'<th scope="col"><span{kind}>{label}</span></th>' for label in names)
    body = "".join(
        f'<tr><th scope="row">{label}</th>{"".join(map(cell, *row))}</tr>'
        for label, *row in zip(names, counts, share, strict=True)
    )
    head = f'<thead><tr><th scope="col">true \\ predicted</th>{heads}</tr></thead>'
    return _scrolled(name, f"{head}<tbody>{body}</tbody>")


def _figure(
    alt: str, draw: Callable[..., Any], *args: Any, caption: str = "", **options: Any
) -> str:
    """A figure in the page; `alt` describes it for those who cannot see it."""
    drawn = io.BytesIO()
    draw(drawn, *args, **options)
    image = base64.b64encode(drawn.getvalue()).decode()
    over = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    source = f"data:image/png;base64,{image}"
    return f'<figure>{over}<img src="{source}" alt="{html.escape(alt)}"></figure>'


def _grid(parts: Iterable[str], kind: str = "grid") -> str:
    return f'<div class="{kind}">{"".join(parts)}</div>'


def _results(experiment: Experiment, task: Task, note: str) -> Iterable[str]:
    """The tables of a task, and its label-efficiency curves."""
    lines = [line for line in experiment.lines if line.task == task.name]
    if not lines:
        return
    yield "<h3>Results</h3>" + "".join(map(_html_table, tables.tables_of(experiment, task)))
    metric = tables.headline(lines)
    yield "<h3>Label efficiency</h3>" + _grid(
        (
            _figure(
                f"{task.name}, {method_name(method)}: "
                f"{metric_name(metric, len(task.labels))} against the share of the training "
                "subjects, one line per encoder, as in the tables above.",
                label_efficiency_figure,
                experiment.lines,
                experiment.tasks,
                metric,
                note=note,
                only=(task.name, method),
            )
            for method in dict.fromkeys(line.method for line in lines)
        ),
        "grid wide",
    )


def _errors(experiment: Experiment, task: Task, note: str) -> Iterable[str]:
    """The ROC curves of a task, and its confusion matrices."""
    found: dict[str, dict[str, Scores]] = {}
    for (row, method, own), scores in experiment.scores.items():
        if own == task.name:
            found.setdefault(method, {})[row] = scores
    if not found:
        return
    mean = " Means of the one-against-rest curves." if len(task.labels) > 2 else ""
    yield f"<h3>ROC curves</h3><p>With all labels, first seed.{mean}</p>" + _grid(
        _figure(
            f"{task.name}, {method_name(method)}: sensitivity against 1 − specificity for "
            f"{', '.join(rows)}.",
            rocs_figure,
            {row: (own.true, own.scores) for row, own in rows.items()},
            f"{short(task.name, 30)}, {method_name(method)}",
            note=note,
        )
        for method, rows in found.items()
    )
    how = "With all labels, first seed. Counts; cells are shaded by the share of the true class."
    yield f"<h3>Confusion matrices</h3><p>{how}</p>" + _grid(
        (
            _confusion(f"{row}, {method_name(method)}", task.labels, scores)
            for method, rows in found.items()
            for row, scores in rows.items()
        ),
        "matrices",
    )


def _maps(experiment: Experiment, note: str) -> Iterable[str]:
    """Embeddings laid out in a plane, by label and by subject."""
    for (row, task), own in experiment.embeddings.items():
        yield f"<h3>{html.escape(f'{row}, {task}')}</h3>"
        if len(own.features) < FEWEST or not np.isfinite(own.features).all():
            yield "<p>No map: too few recordings, or embeddings that are not finite.</p>"
            continue
        kept, points = project(own.features)
        yield f"<p>{len(kept)} of {len(own.features)} recordings.</p>" + _grid(
            (
                _figure(
                    f"Map of the embeddings of {row} on {task}, coloured by {by}.",
                    map_figure,
                    points,
                    np.asarray(names)[kept],
                    f"by {by}",
                    most=most,
                    note=note,
                )
                for by, names, most in (("label", own.labels, 14), ("subject", own.subjects, 7))
            ),
            "grid wide",
        )


def _runs(training: Mapping[str, Sequence[Mapping[str, Any]]], note: str) -> Iterable[str]:
    """Training curves of the first runs, the loss before other metrics."""
    for name, history in list(training.items())[:_MOST_RUNS]:
        shown = dict.fromkeys(
            key
            for line in history
            for key, value in line.items()
            if key not in _DULL and isinstance(value, int | float)
        )
        panels = sorted(shown, key=lambda key: key != "loss")[:_MOST_PANELS]
        if panels:
            yield _figure(
                f"{', '.join(panels)} over the steps of training {name}.",
                training_figure,
                history,
                caption=name,
                note=note,
                names=[(panel, panel.replace("_", " ")) for panel in panels],
                columns=2,
                panel=(2.4, 1.8),
            )


def _again(experiment: Experiment) -> Iterable[str]:
    """The data, and what it takes to reproduce the experiment."""
    if experiment.data:
        head = list(dict.fromkeys(name for counts in experiment.data for name in counts))
        rows = [[_text(counts.get(name, "")) for name in head] for counts in experiment.data]
        yield '<h2 id="data">Data</h2>' + _html_table(tables.Table("Datasets", head, rows))
    yield '<h2 id="again">To reproduce this</h2>'
    if experiment.commands:
        commands = html.escape("\n".join(experiment.commands))
        yield f"<h3>Commands</h3><pre tabindex='0'>{commands}</pre>"
    if experiment.configs:
        yield "<h3>Configs</h3>"
    for name, config in experiment.configs.items():
        shown = html.escape(json.dumps(config, indent=2, default=str, ensure_ascii=False))
        yield f"<details><summary>{html.escape(name)}</summary>"
        yield f"<pre tabindex='0'>{shown}</pre></details>"
    if experiment.versions:
        rows = [list(item) for item in experiment.versions.items()]
        yield "<h3>Versions</h3>" + _html_table(
            tables.Table("Software", ["package", "version"], rows)
        )


def write_report(experiment: Experiment, path: pathlib.Path) -> None:
    """Writes the report, one HTML file. Missing pieces are left out."""
    title = html.escape(experiment.title)
    note = "synthetic data" if experiment.synthetic else ""
    parts = [_HEAD.format(title=title, css=_CSS)]
    if experiment.synthetic:
        parts.append(f'<p class="banner">{tables.SYNTHETIC}</p>')
    parts.append(f"<main><h1>{title}</h1>")
    if experiment.notes:
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in experiment.notes)
        parts.append(f'<ul class="notes">{notes}</ul>')
    sections = {f"task-{place}": task.name for place, task in enumerate(experiment.tasks)}
    sections |= {"maps": "Embeddings"} if experiment.embeddings else {}
    sections |= {"training": "Training"} if experiment.training else {}
    sections |= {"data": "Data"} if experiment.data else {}
    sections["again"] = "To reproduce this"
    links = (f'<a href="#{key}">{html.escape(name)}</a>' for key, name in sections.items())
    parts.append(f"<nav>{' '.join(links)}</nav><p>{html.escape(tables.reading(experiment))}</p>")
    for place, task in enumerate(experiment.tasks):
        lines = [line for line in experiment.lines if line.task == task.name]
        parts.append(f'<h2 id="task-{place}">{html.escape(task.name)}</h2>')
        parts.append(f"<p>{html.escape(tables.about(task, lines))}</p>")
        parts += [*_results(experiment, task, note), *_errors(experiment, task, note)]
    if experiment.embeddings:
        parts.append(
            '<h2 id="maps">Embeddings</h2><p>PCA, then t-SNE: neighbours are close in the '
            "embedding too; the sizes of clusters and the distances between them mean nothing. "
            "Where colours separate by subject but not by label, the encoder reflects the infant "
            "or the room rather than the label.</p>"
        )
        parts += _maps(experiment, note)
    if experiment.training:
        parts.append('<h2 id="training">Training</h2>')
        if len(experiment.training) > _MOST_RUNS:
            parts.append(f"<p>{_MOST_RUNS} of {len(experiment.training)} runs.</p>")
        parts.append(_grid(_runs(experiment.training, note)))
    parts += [*_again(experiment), "</main>\n</body>\n</html>\n"]
    with whole(path, newline="") as file:
        file.write("".join(parts))

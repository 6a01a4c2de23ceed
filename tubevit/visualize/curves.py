"""Training curves from metrics.jsonl."""

import json

import numpy as np

from tubevit.errors import UserError
from tubevit.visualize.lettering import shown
from tubevit.visualize.style import colour, new_axes

_SMOOTHED = 20  # training curves are averaged over 1 / 20 of their points
_SCORES = ("top1", "map")


def read_metrics(text: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Parse metrics.jsonl into {metric: (int64 steps, float64 values)}; null values are left out.

    Raises:
        UserError: there is no metric, or a line is malformed. The last line may be, because a run can be killed.
    """
    series: dict[str, list] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"line {number} of metrics.jsonl must be a JSON object with a step; found {line[:60]!r}"
            ) from error
        for name, value in row.items():
            if isinstance(value, int | float):
                series.setdefault(name, []).append((step, value))
    if not series:
        raise UserError("metrics.jsonl holds no metric")
    columns = {name: zip(*pairs) for name, pairs in series.items()}
    return {name: (np.array(steps), np.array(values, float)) for name, (steps, values) in columns.items()}


def drawn_metrics(metrics: dict) -> str:
    """Select the metrics that the figures below draw, in the format of metrics.jsonl."""
    rows: dict[int, dict] = {}
    for name, (steps, values) in metrics.items():
        if name.split("/")[-1] in ("loss", *_SCORES):
            for step, value in zip(steps.tolist(), values.tolist()):
                rows.setdefault(step, {"step": step})[name] = round(value, 5)
    return "".join(json.dumps(rows[step]) + "\n" for step in sorted(rows))


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Return the moving average over up to `width` values that end at each value."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - max(width, 1), 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def loss_figure(metrics: dict):
    """Draw the loss over steps, in training (raw and averaged) and evaluation (points), as a matplotlib figure."""
    figure, axes = _axes("loss")
    names = _datasets(metrics)
    losses = {name: metrics[f"train/{name}/loss"] for name in names if f"train/{name}/loss" in metrics}
    if not losses and "train/loss" in metrics:
        losses = {"all": metrics["train/loss"]}
    for i, (name, (steps, values)) in enumerate(losses.items()):
        line = colour(names.index(name) if name in names else i)
        axes.plot(steps, values, color=line, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smoothed(values, len(values) // _SMOOTHED), color=line, linewidth=1.6, label=shown(name))
    _points(axes, metrics, ("loss",), 1, "{} (evaluation)")
    _finish(axes, None)
    return figure


def score_figure(metrics: dict):
    """Draw top-1 accuracy or mean average precision of evaluations over steps, as a matplotlib figure."""
    figure, axes = _axes("top-1 or mAP, %")
    _points(axes, metrics, _SCORES, 100, "{} {}")
    _finish(axes, 100)
    return figure


def has_scores(metrics: dict) -> bool:
    """Whether the metrics contain a score that `score_figure` draws."""
    return any(f"eval/{name}/{kind}" in metrics for name in _datasets(metrics) for kind in _SCORES)


def _datasets(metrics: dict) -> list[str]:
    parts = (name.split("/") for name in metrics)
    return sorted({part[1] for part in parts if len(part) == 3 and part[0] in ("train", "eval")})


def _points(axes, metrics: dict, kinds: tuple[str, ...], factor: float, text: str) -> None:
    """Draw the metrics of evaluations, each data set in its colour."""
    for i, name in enumerate(_datasets(metrics)):
        for kind in kinds:
            if f"eval/{name}/{kind}" in metrics:
                steps, values = metrics[f"eval/{name}/{kind}"]
                style = dict(color=colour(i), linewidth=1.2, linestyle=(0, (4, 2)), marker="o", markersize=4)
                axes.plot(steps, factor * values, **style, label=text.format(shown(name), kind), clip_on=False)


def _finish(axes, largest: float | None) -> None:
    """Set the limits, and place the legend above the axes, where it hides no curve."""
    axes.set(xlim=(0, None), ylim=(0, largest))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, frameon=False)


def _axes(label: str):
    figure, axes = new_axes(4.6, 2.9)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes

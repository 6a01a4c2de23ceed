"""What a reader of a format gets, and what it gives."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.checkpoint.paths import grouped
from tubevit.convert.layout import Layout
from tubevit.errors import UserError
from tubevit.models.config import ModelConfig

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user says beside the source.

    Attributes:
        prefix: of the names that are read, of .npz.
        heads: number of attention heads, where a file does not say it.
        headless: leaves the classifier out, and what stands before it.
        mean, std: of the pixels as 0..1, instead of the source's.
    """

    prefix: str | None = None
    heads: int | None = None
    headless: bool = False
    mean: Triple | None = None
    std: Triple | None = None


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A model as it was found.

    Attributes:
        config: of ours that computes the same.
        weights: theirs by name, without those left out.
        layout: how they become ours.
        files: what they were read from.
        interpolation: with which its images are resized, or None where it is not said.
        notes: what was assumed or left out, a line each.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    layout: Layout
    files: tuple[pathlib.Path, ...]
    interpolation: str | None
    notes: tuple[str, ...]


def shapes_of(weights: Mapping[str, np.ndarray], ranks: Mapping[str, int], title: str) -> list[tuple[int, ...]]:
    """Shapes of the arrays from which the sizes of a model follow, in the order of `ranks`, {name: number of axes}.

    Raises:
        UserError: all that is missing or has other axes.
    """
    problems = [f"missing {name}" for name in ranks if name not in weights]
    problems += [
        f"{name}: expected {rank} axes, found {weights[name].shape}"
        for name, rank in ranks.items()
        if name in weights and weights[name].ndim != rank
    ]
    if problems:
        found = ", ".join(grouped(dict.fromkeys(weights, ""))[:8]) or "nothing"
        raise UserError(f"{title}: {'; '.join(problems)}; it holds {found}")
    return [weights[name].shape for name in ranks]


def leave_out(weights: Mapping[str, np.ndarray], beginnings: tuple[str, ...]) -> tuple[dict, list[str]]:
    """The arrays whose names begin with none of these, and notes about the others."""
    dropped = {name: "" for name in weights if name.startswith(beginnings)}
    kept = {name: array for name, array in weights.items() if name not in dropped}
    return kept, [f"left out: {', '.join(grouped(dropped))}"] if dropped else []


def statistics(options: Options, mean, std, where: str) -> tuple[dict, list[str]]:
    """Fields `mean` and `std` of the configuration: the user's, else the source's, else 0.5; and a note on the last.

    Args:
        options: the user's.
        mean, std: the source's, or None where it does not say them.
        where: it says them, of the error and the note.

    Raises:
        UserError: the source's are not 3 numbers.
    """
    given = {"mean": options.mean or mean, "std": options.std or std}
    wrong = [f"{name} {value!r}" for name, value in given.items() if value is not None and not _is_triple(value)]
    if wrong:
        raise UserError(f"{where}: expected 3 numbers, found {', '.join(wrong)}")
    absent = [name for name, value in given.items() if value is None]
    notes = [f"{where} does not say {' and '.join(absent)}: taken to be 0.5, see --mean and --std"] if absent else []
    return {name: (0.5, 0.5, 0.5) if value is None else tuple(value) for name, value in given.items()}, notes


def _is_triple(value) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)

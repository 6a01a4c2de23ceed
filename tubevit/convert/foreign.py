"""What the reader of a format receives and returns."""

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
    """What the user says in addition to the files.

    Attributes:
        prefix: the prefix of the names to read from a .npz file.
        heads: the number of attention heads, where a file does not say it.
        headless: whether to leave out the classifier and the layers before it.
        mean, std: pixel statistics on the scale 0..1, which replace those of the source.
        frames, size: the clip of a video model, in frames and in pixels of a side, where a file does not say it.
    """

    prefix: str | None = None
    heads: int | None = None
    headless: bool = False
    mean: Triple | None = None
    std: Triple | None = None
    frames: int | None = None
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A model of another library.

    Attributes:
        config: the configuration of our model that computes the same.
        weights: its arrays by name, without those that are left out.
        layout: the table that translates them to ours.
        files: the files that were read.
        interpolation: how its images are resized, or None if unknown.
        notes: what was assumed or left out, one line each.
        licence: the licence of the weights, or None if the files do not say it.
        is_own: whether it is one of our models, which keeps its LayerScale.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    layout: Layout
    files: tuple[pathlib.Path, ...]
    interpolation: str | None
    notes: tuple[str, ...]
    licence: str | None = None
    is_own: bool = False


def shapes_of(weights: Mapping[str, np.ndarray], ranks: Mapping[str, int], source: str) -> list[tuple[int, ...]]:
    """Return the shapes of the arrays that determine the sizes of a model, in the order of {name: number of axes}.

    Raises UserError if arrays are missing or have another number of axes.
    """
    problems = [f"missing {name}" for name in ranks if name not in weights]
    problems += [
        f"{name}: expected {rank} axes, found {weights[name].shape}"
        for name, rank in ranks.items()
        if name in weights and weights[name].ndim != rank
    ]
    if problems:
        raise UserError(
            f"{source}: {'; '.join(problems)}; it holds {', '.join(grouped(weights.keys())[:8]) or 'nothing'}"
        )
    return [weights[name].shape for name in ranks]


def leave_out(
    weights: Mapping, prefixes: tuple[str, ...], described: str | None = None
) -> tuple[dict, tuple[str, ...]]:
    """Remove the arrays whose names start with one of the prefixes; returns the rest, and a note if any was removed."""
    kept = {name: array for name, array in weights.items() if not name.startswith(prefixes)}
    dropped = described or ", ".join(grouped(weights.keys() - kept.keys()))
    return kept, (f"left out: {dropped}",) if len(kept) < len(weights) else ()


def with_options(
    config: ModelConfig, weights: Mapping, options: Options, heads: str
) -> tuple[ModelConfig, Mapping, tuple[str, ...]]:
    """Apply options to one of our own models, whose heads have names that start with `heads`; returns notes, too."""
    given = {name: value for name in ("mean", "std") if (value := getattr(options, name)) is not None}
    if not options.headless:
        return config.replace(**given), weights, ()
    return config.replace(heads=(), **given), *leave_out(weights, (heads,))


def clip_of(
    options: Options, released: tuple[int, int], source: str, stored: int | None = None
) -> tuple[int, int, tuple[str, ...]]:
    """Return frames and size of the clip of a video model, and a note on what is assumed.

    Args:
        options: what the user says.
        released: frames and size of the released models, which are assumed otherwise.
        source: what is read, for messages.
        stored: the number of frames, where the file says it.

    Raises UserError if the user says another number of frames than the file.
    """
    if stored is not None and options.frames not in (None, stored):
        raise UserError(f"{source} has positions for {stored} frames; found --frames {options.frames}: leave it out")
    frames = (options.frames or released[0]) if stored is None else stored
    size = options.size or released[1]
    assumed = {"--frames": f"{frames} frames"} if stored is None and options.frames is None else {}
    assumed |= {"--size": f"{size} pixels"} if options.size is None else {}
    what = "all of the clip" if len(assumed) == 1 else "the clip"
    text = f"{source} does not say {what}: assumed to be {' of '.join(assumed.values())}, see {' and '.join(assumed)}"
    return frames, size, (text,) if assumed else ()


def statistics(options: Options, mean, std, source: str) -> tuple[dict, tuple[str, ...]]:
    """Return the fields `mean` and `std`, and notes: the user's values, else those of the source, else 0.5.

    Raises UserError if the statistics of the source are not 3 numbers.
    """
    given = {"mean": options.mean or mean, "std": options.std or std}
    wrong = [f"{name} {value!r}" for name, value in given.items() if value is not None and not _is_triple(value)]
    if wrong:
        raise UserError(f"{source}: expected 3 numbers, found {', '.join(wrong)}")
    absent = " and ".join(name for name, value in given.items() if value is None)
    notes = (f"{source} does not say {absent}: assumed to be 0.5, see --mean and --std",) if absent else ()
    return {name: (0.5, 0.5, 0.5) if value is None else tuple(value) for name, value in given.items()}, notes


def _is_triple(value) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)

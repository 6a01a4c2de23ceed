"""Film strips of the moments that a search found, beside what was searched for."""

import functools
import logging
import math
import os
from collections.abc import Sequence

import cv2
import numpy as np

from tubevit import storage
from tubevit.data.decode import Decoded, decode_media, decode_part
from tubevit.data.yuv import to_rgb
from tubevit.errors import UserError
from tubevit.evaluation.features import Features
from tubevit.evaluation.search import Moment
from tubevit.models.config import ModelConfig
from tubevit.visualize import lettering
from tubevit.visualize.layout import enlarged
from tubevit.visualize.page import Picture, Section
from tubevit.visualize.style import GAP, LINE, WIDTH, evenly, ground, new_figure, plotting, show_image, tile, wrapped

logger = logging.getLogger(__name__)
_FRAMES = 6  # of a strip
_LARGEST = 360  # longer side of a drawn frame, in pixels


def facts(path: str | os.PathLike, features: Features) -> dict[str, str]:
    """Describe what was searched for the top of the page: {what: text}."""
    count, files = len(features.features), len(np.unique(features.files))
    of = "1 file" if files == 1 else f"{files:,} files"
    return {
        "Searched": f"{storage.printable(os.fspath(path))}: {count:,} clips of {of}",
        "Model": f"{storage.printable(features.model)} (fingerprint {features.fingerprint[:8]})",
        "Similarity": "cosine of the pooled features, compared with all clips; of overlapping clips the best counts",
    }


def sections(config: ModelConfig, found: Sequence[tuple[str | os.PathLike, Sequence[Moment]]]) -> list[Section]:
    """Return a section of film strips for each query, with the moments below it.

    Args:
        config: configuration of the model, which says what clip of a whole file it saw.
        found: pairs of query and its moments.
    """
    return [_section(config, number, *each) for number, each in enumerate(found)]


def _section(config: ModelConfig, number: int, query: str | os.PathLike, moments: Sequence[Moment]) -> Section:
    name = storage.printable(os.fspath(query))
    strips = [(f"query_{number}", f"Query: {name}", Moment(os.fspath(query), None, None, 1.0))]
    for rank, moment in enumerate(moments, 1):
        times = "" if moment.start is None else f",  {clock(moment.start)} to {clock(moment.end or 0)}"
        text = f"{rank}.  {storage.printable(moment.file)}{times},  similarity {moment.similarity:.3f}"
        strips.append((f"moment_{number}_{rank}", text, moment))
    pictures, missing = [], []
    for file, text, moment in strips:
        try:
            frames, times = _frames(config, moment)
        except (UserError, OSError) as error:
            logger.warning(f"tubevit: warning: a strip is left out: {error}")
            missing.append(f"{text.partition('  ')[0]} is left out: {storage.printable(str(error))}.")
            continue
        draw = functools.partial(strip_figure, frames, times, text)
        pictures.append(Picture(file, text, draw, photo=True, wide=True))
    about = "Whole frames with their times; the model compares the centred square of each."
    return Section(f"Moments similar to {name}", " ".join([about, *missing]), pictures)


def _frames(config: ModelConfig, moment: Moment) -> tuple[np.ndarray, list[float]]:
    """Read frames (n, H, W, 3) uint8 of a moment, and their times in seconds; [] for an image."""
    if moment.start is None or moment.end is None:  # what the model saw of the whole file
        clip = decode_media(moment.file, config.frames, config.fps)
    else:
        clip = decode_part(moment.file, _FRAMES, moment.start, moment.end)
    shown = evenly(_FRAMES, len(clip.frames))
    return _small(clip, shown), [] if clip.first is None else (clip.first + (clip.step or 0) * shown).tolist()


def _small(clip: Decoded, shown: np.ndarray) -> np.ndarray:
    frames = [clip.frames[i] for i in shown]
    pixels = np.stack([frame if isinstance(frame, np.ndarray) else to_rgb(frame) for frame in frames])
    scale = _LARGEST / max(pixels.shape[1:3])
    if scale >= 1:
        return enlarged(pixels)[0]
    size = max(round(pixels.shape[2] * scale), 1), max(round(pixels.shape[1] * scale), 1)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pixels])


def clock(seconds: float) -> str:
    """Write a time in a video, such as 1:02:03.5 for 3723.5 seconds."""
    tenths = math.floor(seconds * 10 + 0.5)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest // 10:02d}.{rest % 10}"


def strip_figure(frames: np.ndarray, times: Sequence[float], text: str):
    """Draw a film strip as a matplotlib figure.

    Args:
        frames: (n, H, W, 3) uint8.
        times: n times of the frames in seconds, below them; [] for none.
        text: title.
    """
    height, width = frames.shape[1:3]
    row = WIDTH * height / width / max(len(frames), _FRAMES)
    text = wrapped(lettering.shown(text))
    lines = 1 + text.count("\n") + bool(times)
    figure = new_figure(WIDTH, row + 0.07 + lines * LINE)
    axes = figure.subplots()
    show_image(axes, tile(frames / 255, len(frames), GAP, ground()))
    axes.set_title(text)
    axes.set_anchor("W")
    for place, time in enumerate(times):
        middle = place * (width + GAP) + width / 2
        axes.annotate(
            clock(time), (middle, height), (0, -2), textcoords="offset points", annotation_clip=False,
            ha="center", va="top", fontsize=8, color=plotting().rcParams["xtick.color"],
        )  # fmt: skip
    return figure

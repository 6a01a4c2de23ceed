"""Files of one's own, and what a model says of them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from tubevit.data.decode import decode_media
from tubevit.models.config import Head
from tubevit.models.tubevit import TubeViT


@dataclasses.dataclass(frozen=True)
class OwnFile:
    """A video or an image.

    Attributes:
        name: of the file, as it can be shown.
        pixels: as the model takes them, (T, H, W, 3) or (H, W, 3) uint8.
        text: the most probable label of each head that takes such a file, and how probable it is.
    """

    name: str
    pixels: np.ndarray
    text: str


def read_files(model: TubeViT, paths: Iterable[str | os.PathLike]) -> list[OwnFile]:
    """Reads files and predicts their labels.

    Raises:
        UserError: a file cannot be decoded, or is none that is known.
    """
    return [_read(model, pathlib.Path(path)) for path in paths]


def _read(model: TubeViT, path: pathlib.Path) -> OwnFile:
    decoded = decode_media(path, model.config.frames, model.config.fps)
    kind, pixels = decoded.kind, decoded.pixels(model.config.size)
    pooled = model.features(pixels)
    said = [
        _most_probable(name, head, np.asarray(model.heads[name](pooled)[0]))
        for name, head in model.config.heads
        if head.modality in (kind, "any")
    ]
    shown = os.fsencode(path.name).decode(errors="replace")  # a name need not be UTF-8, a page is
    return OwnFile(shown, pixels[0], ",  ".join([shown, *said]))


def _most_probable(name: str, head: Head, logits: np.ndarray) -> str:
    best = int(logits.argmax())
    return f"{name}: {head.class_name(best)} ({float(head.probabilities(logits)[best]):.0%})"

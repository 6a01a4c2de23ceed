"""The user's own files and what a model predicts for them."""

import dataclasses
import os
from collections.abc import Iterable

import numpy as np

from tubevit.evaluation.predict import predict
from tubevit.models.tubevit import TubeViT


@dataclasses.dataclass(frozen=True)
class OwnFile:
    """A video or an image.

    Attributes:
        name: file name as it can be shown.
        pixels: (T, H, W, 3) or (H, W, 3) uint8, the input of the model.
        text: the most probable label of each head that takes the file, and its probability.
    """

    name: str
    pixels: np.ndarray
    text: str


def read_files(model: TubeViT, paths: Iterable[str | os.PathLike]) -> list[OwnFile]:
    """Read files and predict their labels; raises UserError if a file cannot be decoded."""
    files = []
    for found in predict(model, paths, top=1 if model.config.heads else 0, keep_pixels=True):
        if found.pixels is None:
            raise found.error  # pyright: ignore[reportGeneralTypeIssues]
        name = os.fsencode(os.path.basename(found.file)).decode(
            errors="replace"
        )  # a name need not be UTF-8, but a page is
        labels = [f"{head}: {label} ({share:.0%})" for head, [(label, share)] in found.labels.items()]
        files.append(OwnFile(name, found.pixels, ",  ".join([name, *labels])))
    return files

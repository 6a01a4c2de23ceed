"""Search for the moments of videos that are most similar to a clip or an image, exactly, by their pooled features."""

import dataclasses
import math
import os

import numpy as np

from tubevit.checkpoint.fingerprint import fingerprint
from tubevit.errors import UserError
from tubevit.evaluation.features import Features
from tubevit.models.tubevit import TubeViT
from tubevit.zoo.names import load_model

_TOUCHING = 1e-6  # seconds; clips that follow one another may overlap by rounding errors


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment that was found.

    Attributes:
        file: path as it was given to `predict`.
        start, end: of the moment, in seconds; None if the features stand for the whole file.
        similarity: cosine similarity to the query, -1 to 1.
    """

    file: str
    start: float | None
    end: float | None
    similarity: float


def open_model(features: Features, path: str | os.PathLike, name: str | None = None) -> TubeViT:
    """Load the model that made features, with the budget that it had.

    A model without a rate gets that of the features' clips, so that a query is as long as they are.

    Args:
        features: as `read_features` read them from `path`.
        path: for messages.
        name: name of its checkpoint; None takes the name that it had when the features were made.

    Raises:
        UserError: there is no such checkpoint, or it is another model.
    """
    try:
        model = load_model(features.model if name is None else name, budget=features.budget or "100%")
    except UserError as error:
        if name is not None:
            raise
        raise UserError(f"{path} was made with {features.model}: {error}; name it with --checkpoint") from error
    found = fingerprint(model)
    if found != features.fingerprint:
        made, other = (text[:8] for text in (features.fingerprint, found))
        raise UserError(
            f"{path} was made with {features.model} (fingerprint {made}), and {name or 'what it is now'} is another "
            f"model ({other}); name the one that made it with --checkpoint, or write the features again"
        )
    seconds = features.end - features.start
    if model.config.fps is None and not np.isnan(seconds).all():
        longest = float(np.nanmax(seconds))  # the last clip of a video may be cut off at its end
        model.config = model.config.replace(fps=model.config.frames / longest)
    return model


def find_moments(features: Features, queries: np.ndarray, top: int) -> list[list[Moment]]:
    """Find the moments that are most similar to each query, the most similar first.

    Of clips of a file that overlap, which are views of one moment, only the most similar one counts. The search is
    exact: it compares with all features.

    Args:
        features: of many clips.
        queries: (n, D), of the same model.
        top: number of moments for each query.

    Raises:
        UserError: the features have other widths.
    """
    from sklearn.neighbors import NearestNeighbors

    width = features.features.shape[1]
    if queries.shape[1] != width:
        raise UserError(f"expected features of {queries.shape[1]} channels, those of the model; found {width}")
    index = NearestNeighbors(n_neighbors=len(features.features), metric="cosine", algorithm="brute")
    index.fit(features.features)
    # One query at a time: the distances of all clips to all queries may not fit in memory.
    ranked = (index.kneighbors(query[None]) for query in queries)
    return [_best(features, order[0], 1 - distances[0], top) for distances, order in ranked]


def _best(features: Features, rows: np.ndarray, similarities: np.ndarray, top: int) -> list[Moment]:
    """Take the first of the rows, in descending order of similarity, that do not overlap with one taken before."""
    moments, start, end = [], features.start, features.end
    files = np.unique(features.files, return_inverse=True)[1]
    seen = np.zeros(len(files), bool)
    for row, similarity in zip(rows.tolist(), similarities.tolist()):
        if seen[row]:
            continue
        shared = np.minimum(end, end[row]) - np.maximum(start, start[row])  # NaN, which is no overlap, of whole files
        seen |= (files == files[row]) & (shared > _TOUCHING)
        times = (None, None) if math.isnan(start[row]) else (start[row].item(), end[row].item())
        moments.append(Moment(str(features.files[row]), *times, similarity))
        if len(moments) == top:
            break
    return moments

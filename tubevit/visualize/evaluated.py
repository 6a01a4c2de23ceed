"""Files as pixels with predictions of a model: evaluation data, and the user's own files."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tubevit import storage
from tubevit.config import dataset_config
from tubevit.config.experiment import open_eval
from tubevit.data.labels import distinct_names
from tubevit.data.pipeline import SampleLoader
from tubevit.data.sources import Source
from tubevit.data.views import ONE_VIEW
from tubevit.errors import NothingDecoded, RunError, UserError
from tubevit.evaluation.evaluate import Predictions, not_finite, predict_source
from tubevit.evaluation.forward import make_forward
from tubevit.evaluation.predict import predict
from tubevit.models.abstract import parameters
from tubevit.models.tubevit import TubeViT
from tubevit.visualize.style import evenly

MOST_FILES = 2000  # a report evaluates at most this many files of a data set
MOST_SHOWN = 32  # of the user's own files, whose pixels and heat maps are held until the page is written


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A data set with predictions of a model.

    Attributes:
        name: name of the data set.
        head: head of the model.
        load: loader of its files, as pixels.
        listed: number of its files; `load` has at most `MOST_FILES` of them.
        predictions: predictions for the files of `load`.
    """

    name: str
    head: str
    load: SampleLoader
    listed: int
    predictions: Predictions

    @property
    def source(self) -> Source:
        """The files."""
        return self.load.source

    @property
    def class_names(self) -> list[str]:
        """The names of the classes as they can be shown."""
        return [storage.printable(name) for name in distinct_names(self.source.classes)]

    @property
    def looked_at(self) -> str:
        """A text that names the data and the number of files."""
        kind, used = f"{self.source.modality}s", int(self.predictions.used.sum())
        count = str(used) if used == self.listed else f"{used} of {self.listed}"
        return f"{count} {kind} of {self.name} (head {self.head})"

    def clip(self, index: int) -> np.ndarray:
        """Load file `index`: (T, size, size, 3) or (size, size, 3) uint8, see `SampleLoader.view`."""
        return self.load.view(index, 0, ONE_VIEW, np.random.default_rng(0))[0]

    def surest(self, count: int) -> Iterator[int]:
        """Yield at most `count` correctly predicted files: the most confident one per class, in order of confidence."""
        probabilities, labels = self.predictions.probabilities, self.source.labels
        predicted = probabilities.argmax(axis=1)
        found = labels[np.arange(len(labels)), predicted] > 0 if self.source.multi_label else labels == predicted
        right = np.flatnonzero(self.predictions.used & found)
        order = right[np.argsort(-probabilities[right, predicted[right]], kind="stable")]
        _, first = np.unique(predicted[order], return_index=True)
        yield from order[np.sort(first)[:count]].tolist()


def evaluate_stored(model: TubeViT, name: str, values: Mapping) -> Evaluated:
    """Predict the files of a data set, one view each.

    Args:
        model: any.
        name: name of the data set.
        values: its entry in `data.eval` of the configuration of a run.

    Raises:
        NothingDecoded: none of the files can be decoded.
        UserError: the files are missing, or they do not fit the model.
        RunError: predictions are not finite.
    """
    dataset = dataset_config(**values)
    load = open_eval(model.config, name, dataset, "tubes")
    listed = len(load.source)
    load = dataclasses.replace(load, source=_part(load.source, evenly(MOST_FILES, listed)))
    forward = make_forward(model.config, dataset.head)
    predictions = predict_source(forward, parameters(model), load, min(dataset.batch_size, len(load.source)))
    if not predictions.used.any():
        raise NothingDecoded(f"none of the {listed} files of {load.source.name} can be decoded: {load.reason(0)}")
    if reason := not_finite(predictions.probabilities[predictions.used]):
        raise RunError(f"{name}: {reason}")
    return Evaluated(name, dataset.head, dataclasses.replace(load, tubes=None), listed, predictions)


def _part(source: Source, files: np.ndarray) -> Source:
    return dataclasses.replace(
        source, keys=[source.keys[i] for i in files], labels=source.labels[files],
        listed_at=[source.listed_at[i] for i in files] if len(source.listed_at) else (),
        read=lambda index: source.media(int(files[index])),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OwnFile:
    """One of the user's videos or images.

    Attributes:
        name: file name as it can be shown.
        pixels: (T, H, W, 3) or (H, W, 3) uint8, the input of the model.
        text: the most probable label of each head that takes the file, and its probability.
    """

    name: str
    pixels: np.ndarray
    text: str


def read_files(
    model: TubeViT, paths: Iterable[str | os.PathLike]
) -> tuple[list[OwnFile], dict[str | os.PathLike, UserError]]:
    """Read files and predict their labels.

    Returns:
        The files that can be read, and the error of each other path.

    Raises:
        UserError: there are more than `MOST_SHOWN` paths, or none of them can be read.
    """
    paths = list(paths)
    if len(paths) > MOST_SHOWN:
        raise UserError(
            f"a report shows at most {MOST_SHOWN} files; found {len(paths)}: name fewer, or predict their labels with "
            "`tubevit predict`, which takes any number"
        )
    files, broken = [], {}
    for found in predict(model, paths, top=1 if model.config.heads else 0, keep_pixels=True):
        if found.pixels is None:
            assert found.error is not None
            broken[found.file] = found.error
            continue
        # Names need not be UTF-8, but a page is.
        name = storage.printable(os.path.basename(found.file))
        labels = [
            f"{head}: {storage.printable(label)} ({share:.0%})" for head, [(label, share)] in found.labels.items()
        ]
        files.append(OwnFile(name, found.pixels, ",  ".join([name, *labels])))
    if len(broken) == 1 and not files:
        raise broken.popitem()[1]
    if broken and not files:
        raise NothingDecoded(f"none of the {len(paths)} files can be read: {next(iter(broken.values()))}")
    return files, broken

"""Videos as a data set of TensorFlow Datasets, stored as encoded files, without TensorFlow.

The feature `Video` of TFDS stores a video as images and needs TensorFlow. Here a record is
{"video": encoded bytes, "label", "path"}, in ArrayRecord files that `tfds.data_source` reads:

    from tubevit.data.tfds_videos import write_tfds
    write_tfds("clips.csv", "~/tensorflow_datasets", "my_clips")

    tubevit train --config quickstart --workdir run --config.data.train.moving_digits.source=tfds:my_clips
    tfds.data_source("my_clips", split="train")       # {"video": bytes, "label": index, "path": text}
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from tubevit import storage
from tubevit.data.sources import Source, open_source
from tubevit.errors import UserError


class Videos(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    """The builder of a data set from any source of labelled videos."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # only for checksums of downloads; finding it would need importlib_resources

    def __init__(self, name: str, sources: dict[str, Source], data_dir: str | os.PathLike):
        """Take opened sources by the name of their split."""
        self.name, self._sources = name, sources
        super().__init__(data_dir=os.path.expanduser(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._sources.values()))
        label = tfds.features.ClassLabel(names=list(first.classes))
        features = {
            "video": tfds.features.Tensor(shape=(), dtype=np.object_),
            "label": tfds.features.Sequence(label) if first.multi_label else label,
            "path": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=f"Encoded videos of {first.name}.",
            features=tfds.features.FeaturesDict(features), supervised_keys=("video", "label"),
        )  # fmt: skip

    def _split_generators(self, dl_manager) -> dict:
        return {split: self._generate_examples(source) for split, source in self._sources.items()}

    def _generate_examples(self, source: Source):
        for index, key in enumerate(source.keys):
            media, label = source.media(index), source.labels[index]
            if isinstance(media, np.ndarray):
                raise UserError(f"{key}: expected an encoded video; found pixels")
            video = media if isinstance(media, bytes) else pathlib.Path(media).read_bytes()
            label = np.flatnonzero(label).tolist() if source.multi_label else int(label)
            yield index, {"video": video, "label": label, "path": storage.encode(key)}


def write_tfds(
    source: str, data_dir: str | os.PathLike, name: str, splits: Sequence[str] = ("train", "val")
) -> pathlib.Path:
    """Write the videos of a source as a TFDS data set for `tfds:NAME@DATA_DIR`; return its folder data_dir/name/1.0.0.

    The files are stored unchanged and not checked; `tubevit shard-videos` checks them. The name consists of
    lower-case letters, digits and `_`.

    Raises:
        UserError: there is no such source or split, TFDS does not accept the name, or the source holds images.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise UserError(f"name of the data set: expected lower-case letters, digits and _; found {name!r}")
    sources = {split: open_source(source, split) for split in splits}
    for opened in sources.values():
        if opened.modality != "video":
            raise UserError(f"{source}: expected videos; found images")
    builder = Videos(name, sources, data_dir)
    builder.download_and_prepare()
    return pathlib.Path(builder.data_path)

"""`tfds:NAME[@DATA_DIR]`: data sets that TensorFlow Datasets prepared as ArrayRecord files, read without TensorFlow.

NAME may include a configuration and a version (`imagenette/160px-v2`, `mnist:3.0.1`). `supervised_keys` of the data
set name the media and the label. Images, and videos that are stored as encoded bytes, are passed on as bytes.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import io
import itertools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tubevit import storage
from tubevit.data.container import Media
from tubevit.data.labels import label_array
from tubevit.data.shards import DAMAGED, check_shard
from tubevit.data.sources.embedded import cache_folder
from tubevit.data.sources.source import Source
from tubevit.data.sources.splits import find_split
from tubevit.errors import DecodeError, UserError, closest

logger = logging.getLogger(__name__)
CACHED_FROM = 10_000  # records from which labels are cached; fewer are read in a fraction of a second


@dataclasses.dataclass(frozen=True)
class Keys(Sequence):
    """Names of the records, `NAME/SPLIT[i]`, made on access because there may be millions."""

    name: str
    counts: dict[str, int]

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __getitem__(self, index: int) -> str:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        ends = list(itertools.accumulate(self.counts.values()))
        number = bisect.bisect_right(ends, index)
        split = list(self.counts)[number]
        return f"{self.name}/{split}[{index - ends[number] + self.counts[split]}]"


@dataclasses.dataclass(frozen=True)
class Records:
    """Reads a feature of the records; each process opens the files on first use.

    An `encoded` feature is read from serialised records and returned as stored bytes. Other records are decoded and
    give pixels, (H, W, 3) or (T, H, W, 3) uint8.
    """

    keys: Keys
    records: Any
    feature: str
    encoded: bool

    def __call__(self, index: int) -> Media:
        """Return the media of record `index`; raises DecodeError if it is damaged."""
        record = _record(self.records, self.keys, index)
        if self.encoded:
            return _parse(record, self.feature).bytes_list.value[0]
        pixels = record[self.feature]
        return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _record(records, keys: Keys, index: int):
    try:
        return records[int(index)]
    except RuntimeError as error:  # of array_record
        if DAMAGED in str(error):
            raise DecodeError(f"cannot read {keys[index]}: its record is damaged") from error
        raise OSError(f"cannot read {keys[index]}: {error}") from error


def _parse(record: bytes, feature: str):
    """Parse one feature of a serialised record, ten times as fast as TFDS, which parses all features."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[feature]


def open_tfds(name: str, split: str) -> Source:
    """Open a prepared data set.

    Labels are stored inside the records, so those of large data sets are cached in the cache folder.

    Args:
        name: `tfds:NAME` or `tfds:NAME@DATA_DIR`; DATA_DIR defaults to that of TFDS (`$TFDS_DATA_DIR`, else
            ~/tensorflow_datasets).
        split: name of a split, or `all`; `val`, `validation` and `dev` are the same, see `canonical_split`.

    Raises:
        UserError: there is no such data set or split, it is not prepared as ArrayRecord, or it lacks an image or a
            video and its label.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name)
    info = builder.info
    counts = {key: value.num_examples for key, value in info.splits.items()}
    split = find_split(name, split, counts)
    chosen = counts if split == "all" else {split: counts[split]}

    media, label = _features(name, info)
    raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
    raw = builder.as_data_source("+".join(chosen), deserialize_method=raw_bytes).data_source
    _check_files(name, info, chosen)
    keys = Keys(info.name, chosen)
    feature = info.features[media]
    if isinstance(feature, tfds.features.Image) or feature.np_dtype == np.object_:
        read = Records(keys, raw, media, encoded=True)
    elif feature.np_dtype == np.uint8 and feature.shape[-1] in (1, 3) and len(feature.shape) in (3, 4):
        read = Records(keys, builder.as_data_source("+".join(chosen)), media, encoded=False)
    else:
        raise UserError(f"{name}: {media} is {feature}; expected an image, encoded bytes, or uint8 pixels")
    several = not isinstance(info.features[label], tfds.features.ClassLabel)
    classes = tuple((info.features[label].feature if several else info.features[label]).names)
    labels = _labels(builder, keys, raw, label, len(classes) if several else None)
    if (labels < 0).any():  # test sets with unpublished labels
        raise UserError(f"{name}: {int((labels < 0).sum())} records of {split} have no label; choose another split")
    return Source(name, keys, labels, classes, len(keys), read=read)


def _builder(name: str):
    """Return the builder of a prepared data set."""
    import tensorflow_datasets as tfds

    inner, _, data_dir = name.removeprefix("tfds:").partition("@")
    folder = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    try:
        builder = tfds.builder(inner, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        choices = {*_prepared(folder), *tfds.list_builders(with_community_datasets=False)}
        prepared = f"and none with this name is prepared in {folder}"
        raise UserError(f"unknown data set {inner!r} of TFDS, {prepared}; {closest(inner, choices)}") from error
    except (ValueError, AssertionError, RuntimeError) as error:  # malformed names, unknown configurations and versions
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
    if not builder.info.splits:
        raise UserError(
            f"{name} is not prepared in {folder} (there: {', '.join(_prepared(folder)) or 'nothing'}); prepare it with "
            f"`{_prepare(inner, folder)}` (only this may need TensorFlow; imagenet2012 and imagenette do without)"
        )
    if "array_record" not in {form.value for form in builder.info.available_file_formats()}:
        raise UserError(
            f"{name} is prepared in {builder.data_path} as {builder.info.file_format.value}; expected array_record: "
            f"prepare it in another folder with `{_prepare(inner, 'DIR')}` and name it tfds:{inner}@DIR"
        )
    return builder


def _prepare(inner: str, folder: str) -> str:
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{inner}', data_dir='{folder}', file_format='array_record').download_and_prepare()\""
    )


def _prepared(folder: str) -> list[str]:
    """Return the names, with configurations, of the data sets that are prepared in a folder."""
    files = [file for depth in ("*/*", "*/*/*") for file in pathlib.Path(folder).glob(f"{depth}/dataset_info.json")]
    return sorted({str(file.parent.parent.relative_to(folder)) for file in files})


def _features(name: str, info) -> tuple[str, str]:
    """Return the names of the media and of its label."""
    import tensorflow_datasets as tfds

    media, label = (info.supervised_keys or ("", ""))[:2]
    classes = info.features[label] if label in info.features else None
    if isinstance(classes, tfds.features.Sequence):
        classes = classes.feature  # pyright: ignore[reportOptionalMemberAccess]
    if media not in info.features or not isinstance(classes, tfds.features.ClassLabel):
        found = f"{media} and {label}" if info.supervised_keys else "none"
        raise UserError(
            f"{name}: expected supervised_keys that name an image or a video and its class label; found {found}, "
            f"of the features {', '.join(info.features)}"
        )
    return media, label


def _check_files(name: str, info, chosen: dict[str, int]) -> None:
    """Open each file once: array_record takes an unreadable file for an empty one."""
    for split in chosen:
        for path, records in zip(info.splits[split].filepaths, info.splits[split].shard_lengths):
            try:
                check_shard(os.fspath(path), records)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error


def _labels(builder, keys: Keys, raw, label: str, classes: int | None) -> np.ndarray:
    """Return labels as (n,) int32 or, for several labels each, (n, classes) float32."""
    known = hashlib.sha256((builder.data_path / "dataset_info.json").read_bytes())
    known.update(storage.encode(f"{builder.data_path} {list(keys.counts)} {label}"))
    cached = cache_folder() / "tfds_labels" / f"{known.hexdigest()[:32]}.npy"
    if len(keys) >= CACHED_FROM and cached.exists():
        return np.load(cached)
    if len(keys) >= CACHED_FROM:
        logger.info(f"reading the labels of {len(keys)} records of {keys.name}, once", extra={"every_process": True})
    found = [_parse(_record(raw, keys, i), label).int64_list.value for i in range(len(keys))]
    labels = label_array(found, classes or 0, classes is not None)
    if len(keys) >= CACHED_FROM:
        content = io.BytesIO()
        np.save(content, labels)
        with contextlib.suppress(OSError):  # a cache that cannot be written is no error
            storage.write_bytes(cached, content.getvalue())
    return labels

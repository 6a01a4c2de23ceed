"""`tfds:NAME[@DATA_DIR]`: data sets that TensorFlow Datasets prepared as ArrayRecord files, read without TensorFlow.

NAME may hold a configuration and a version (`imagenette/160px-v2`, `mnist:3.0.1`). What to decode and its label are the
data set's `supervised_keys`. Images, and videos that are stored as encoded bytes, are handed on as bytes.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tubevit.data.container import Media
from tubevit.data.labels import label_array
from tubevit.data.shards import DAMAGED
from tubevit.data.sources.embedded import cache_folder
from tubevit.data.sources.source import Source
from tubevit.errors import DecodeError, UserError, closest, unknown_split

logger = logging.getLogger(__name__)
ALIASES = {"val": "validation", "validation": "val"}
CACHED_FROM = 10_000  # labels: of fewer records they are read anew each time, in a fraction of a second


@dataclasses.dataclass(frozen=True)
class Keys(Sequence):
    """What the records are called, `NAME/SPLIT[i]`; made when asked for, as there may be millions."""

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
class Encoded:
    """`encoded(i)` is the bytes of the feature of record i, as stored; files open lazily, in each process."""

    keys: Keys
    records: Any
    feature: str

    def __call__(self, index: int) -> bytes:
        """The encoded bytes of record `index`; raises `DecodeError` if it is damaged."""
        return _parse(_record(self.records, self.keys, index), self.feature).bytes_list.value[0]


@dataclasses.dataclass(frozen=True)
class Pixels:
    """`pixels(i)` is the decoded feature of record i: (H, W, 3) or (T, H, W, 3) uint8."""

    keys: Keys
    records: Any
    feature: str

    def __call__(self, index: int) -> Media:
        """The pixels of record `index`; raises `DecodeError` if it is damaged."""
        pixels = _record(self.records, self.keys, index)[self.feature]
        return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _record(records, keys: Keys, index: int):
    try:
        return records[int(index)]
    except RuntimeError as error:  # of array_record
        if DAMAGED in str(error):
            raise DecodeError(f"cannot read {keys[index]}: its record is damaged") from error
        raise OSError(f"cannot read {keys[index]}: {error}") from error


def _parse(record: bytes, feature: str):
    """One feature of a serialised record; ten times as fast as TFDS's own parsing, which is of all features."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[feature]


def open_tfds(name: str, split: str) -> Source:
    """Opens a prepared data set.

    The labels of large ones are kept in the cache folder, because they are inside of the records.

    Args:
        name: `tfds:NAME` or `tfds:NAME@DATA_DIR`; DATA_DIR defaults to that of TFDS (`$TFDS_DATA_DIR`, else
            ~/tensorflow_datasets).
        split: name of a split, or `all`; `val` and `validation` are the same.

    Raises:
        UserError: no such data set or split, not prepared or not as ArrayRecord, or without an image or a video
            and its label.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name)
    info = builder.info
    counts = {key: value.num_examples for key, value in info.splits.items()}
    if split not in counts:
        split = ALIASES.get(split, split)
    if split not in (*counts, "all"):
        raise unknown_split(name, split, {*counts, "all"})
    chosen = counts if split == "all" else {split: counts[split]}

    media, label = _features(name, info)
    raw = builder.as_data_source(
        "+".join(chosen), deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    ).data_source
    _check_files(name, info, chosen)
    keys = Keys(info.name, chosen)
    feature = info.features[media]
    if isinstance(feature, tfds.features.Image) or feature.np_dtype == np.object_:
        read = Encoded(keys, raw, media)
    elif feature.np_dtype == np.uint8 and feature.shape[-1] in (1, 3) and len(feature.shape) in (3, 4):
        read = Pixels(keys, builder.as_data_source("+".join(chosen)), media)
    else:
        raise UserError(f"{name}: {media} is {feature}; expected an image, encoded bytes, or uint8 pixels")
    several = not isinstance(info.features[label], tfds.features.ClassLabel)
    classes = tuple((info.features[label].feature if several else info.features[label]).names)
    labels = _labels(builder, keys, raw, label, len(classes) if several else None)
    if (labels < 0).any():  # test sets whose labels were never published
        raise UserError(f"{name}: {int((labels < 0).sum())} records of {split} have no label; choose another split")
    return Source(name, keys, labels, classes, len(keys), read=read)


def _builder(name: str):
    """The builder of a prepared data set."""
    import tensorflow_datasets as tfds

    inner, _, data_dir = name.removeprefix("tfds:").partition("@")
    folder = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    try:
        builder = tfds.builder(inner, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        choices = {*_prepared(folder), *tfds.list_builders(with_community_datasets=False)}
        raise UserError(
            f"unknown data set {inner!r} of TFDS, and none of this name is prepared in {folder}; "
            f"{closest(inner, choices)}"
        ) from error
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
    """Names, with configurations, of what is prepared in a folder."""
    files = [file for depth in ("*/*", "*/*/*") for file in pathlib.Path(folder).glob(f"{depth}/dataset_info.json")]
    return sorted({str(file.parent.parent.relative_to(folder)) for file in files})


def _features(name: str, info) -> tuple[str, str]:
    """The names of what to decode and of its label."""
    import tensorflow_datasets as tfds

    media, label = (info.supervised_keys or (None, None))[:2]
    classes = info.features[label] if label in info.features else None
    if isinstance(classes, tfds.features.Sequence):
        classes = classes.feature
    if media not in info.features or not isinstance(classes, tfds.features.ClassLabel):
        found = f"{media} and {label}" if info.supervised_keys else "none"
        raise UserError(
            f"{name}: expected supervised_keys that name an image or a video and its class label; found {found}, "
            f"of the features {', '.join(info.features)}"
        )
    return media, label


def _check_files(name: str, info, chosen: dict[str, int]) -> None:
    """An unreadable file looks empty to array_record: each is opened once."""
    from tubevit.data.shards import check_shard

    for split in chosen:
        for path, records in zip(info.splits[split].filepaths, info.splits[split].shard_lengths):
            try:
                check_shard(os.fspath(path), records)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error


def _labels(builder, keys: Keys, raw, label: str, classes: int | None) -> np.ndarray:
    """(n,) int32, or (n, classes) float32 for several labels each."""
    known = hashlib.sha256((builder.data_path / "dataset_info.json").read_bytes())
    known.update(f"{builder.data_path} {list(keys.counts)} {label}".encode())
    cached = cache_folder() / "tfds_labels" / f"{known.hexdigest()[:32]}.npy"
    if len(keys) >= CACHED_FROM and cached.exists():
        return np.load(cached)
    if len(keys) >= CACHED_FROM:
        text = f"reading the labels of {len(keys)} records of {keys.name}, once"
        logger.info(text, extra={"every_process": True})
    found = [_parse(_record(raw, keys, i), label).int64_list.value for i in range(len(keys))]
    labels = label_array(found, classes or 0, classes is not None)
    if len(keys) >= CACHED_FROM:
        with contextlib.suppress(OSError):  # a cache that cannot be written is no error
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, labels)
            os.replace(partial, cached)
    return labels

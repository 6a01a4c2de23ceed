"""A source: the labelled files of one split."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from tubevit import storage
from tubevit.data.container import Media, media_kind
from tubevit.data.decode import decode_frames, decode_image
from tubevit.data.labels import label_hash
from tubevit.errors import DecodeError, UserError, unknown

_TRIED = 20  # files that are opened to tell videos from images


def read_file(path: str) -> Media:
    """Return the path of a local file, or the bytes of one in a bucket; raises DecodeError if that does not exist."""
    if not storage.is_remote(path):
        return path
    try:
        return storage.read_bytes(path)
    except FileNotFoundError as error:
        raise DecodeError(f"cannot read {path}: there is no such file") from error


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled files of one split.

    Attributes:
        name: the string that names the source.
        keys: names of the files that were found: paths, or names of records in shards or TFDS.
        labels: (n,) int32 class indices, or (n, classes) float32 of 0 and 1 if files may have several labels.
        classes: names of the classes.
        listed: number of files that the source lists, found or not.
        listed_at: where each file is listed, for messages, e.g. `labels.csv line 7`; empty if the keys suffice.
        notes: notes for the user about how the source was read.
        read: `read(i)` returns the media of file i; None if the keys are paths. Worker processes get a pickled copy.
    """

    name: str
    keys: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    listed: int
    listed_at: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    read: Callable[[int], Media] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def media(self, index: int) -> Media:
        """Return file `index` as a local path, bytes, or uint8 pixels; raises DecodeError if it no longer exists."""
        return read_file(self.keys[index]) if self.read is None else self.read(index)

    @property
    def multi_label(self) -> bool:
        """Whether a file may have several labels."""
        return self.labels.ndim == 2

    @functools.cached_property
    def modality(self) -> str:
        """`video` or `image`, by the first file that decodes; if none of 20 does, by the first bytes of one.

        Raises DecodeError if none of them can be read.
        """
        kinds = []
        for index in range(min(len(self), _TRIED)):
            try:
                media = self.media(index)
                kinds.append(media_kind(media))
                if kinds[-1] == "image":
                    decode_image(media)
                else:
                    decode_frames(media, 1, 1.0, 0.0)
                return kinds[-1]
            except DecodeError as error:
                last = error
        if kinds:
            return kinds[0]
        raise DecodeError(f"{self.name}: none of the first {index + 1} files can be read; the last: {last}") from last  # pyright: ignore[reportGeneralTypeIssues]

    @property
    def label_hash(self) -> str:
        """The hash of the ordered class names."""
        return label_hash(self.classes)

    def with_classes(self, classes: tuple[str, ...]) -> Self:
        """Return the same files, labelled by indices of `classes`; raises UserError for a label that is not in it."""
        if self.classes == classes:
            return self
        index = {name: i for i, name in enumerate(classes)}
        if all(name.isdecimal() for name in self.classes) and not set(self.classes) & set(classes):
            index = {str(i): i for i in range(len(classes))}  # integer labels are indices of any label set
        indices = np.arange(len(self.classes))
        used = np.asarray(self.labels.any(axis=0)) if self.multi_label else np.isin(indices, self.labels)
        for i, name in enumerate(self.classes):
            if used[i] and name not in index:
                having = self.labels[:, i] > 0 if self.multi_label else self.labels == i
                where = (self.listed_at or self.keys)[int(np.flatnonzero(having)[0])]
                raise UserError(f"{where}: label out of range: {unknown('label', name, index)}")
        columns = np.array([index.get(name, 0) for name in self.classes])
        if self.multi_label:
            labels = np.zeros((len(self), len(classes)), np.float32)
            labels[:, columns[used]] = self.labels[:, used]
        else:
            labels = columns[self.labels].astype(np.int32)
        return dataclasses.replace(self, labels=labels, classes=classes)

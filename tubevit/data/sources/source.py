"""A source: the labelled files of one split."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from tubevit import storage
from tubevit.data.container import Media, media_kind
from tubevit.data.decode import decode_media
from tubevit.data.labels import label_hash
from tubevit.data.suffixes import named_kind
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
        """`video` or `image`: the kind of the first file that decodes and whose suffix does not deny it.

        If none of 20 files is like this, the first that decodes decides, else the first bytes of one.

        Raises:
            DecodeError: none of them can be read.
            UserError: the source holds both, as far as suffixes tell.
        """
        read, decoded = [], []
        for index in range(min(len(self), _TRIED)):
            try:
                media = self.media(index)
                read.append(media_kind(media))
                kind = decode_media(media, 1, 1.0, 0.0).kind
            except DecodeError as error:
                last = error
                continue
            if named_kind(self.keys[index]) in (None, kind):
                decoded = [kind]
                break
            decoded.append(kind)
        if not read:
            message = f"{self.name}: none of the first {index + 1} files can be read; the last: {last}"
            raise DecodeError(message) from last  # pyright: ignore[reportGeneralTypeIssues]
        kind = (decoded or read)[0]
        self._refuse_others(kind)
        return kind

    def _refuse_others(self, kind: str) -> None:
        """Raise UserError if files are of the other kind by their suffixes, and the first of them by its content."""
        if self.read is not None and named_kind(self.keys[0]) is None:  # names of records have no suffixes
            return
        other = "image" if kind == "video" else "video"
        named = [index for index, key in enumerate(self.keys) if named_kind(key) == other]
        if len(named) == len(self):  # the suffixes are wrong
            return
        for place, index in enumerate(named[:_TRIED]):
            with contextlib.suppress(DecodeError):  # broken: the name counts
                if media_kind(self.media(index)) == kind:  # an animated PNG or WebP is a video
                    continue
            first = next(key for key in self.keys if named_kind(key) != other)
            count = len(named) - place
            one, two = (f"{n} {what}{'s' * (n > 1)}" for n, what in ((len(self) - count, kind), (count, other)))
            raise UserError(
                f"{self.name} holds {one} (e.g. {first}) and {two} (e.g. {self.keys[index]}); "
                f"a source holds one kind: list the {other}s in a source of their own"
            )

    def check_kind(self, index: int, kind: str) -> None:
        """Raise DecodeError if the content of file `index` is of another kind, `video` or `image`, than the source."""
        if kind != self.modality:
            article = "an" if kind == "image" else "a"
            raise DecodeError(f"{self.keys[index]} is {article} {kind}, although {self.name} holds {self.modality}s")

    @property
    def label_hash(self) -> str:
        """The hash of the ordered class names."""
        return label_hash(self.classes)

    def with_classes(self, classes: tuple[str, ...]) -> Self:
        """Return the same files, labelled by indices of `classes`.

        Labels are matched by name, or by index if the classes are the same or the labels are integers. The brackets in
        templates of Something-Something, such as `Holding [something]`, do not matter: some label maps lack them.

        Raises:
            UserError: a label is not in `classes`, or names several classes, of which it could mean any.
        """
        if self.classes == classes:
            return self
        index = {name: i for i, name in enumerate(classes)}
        if all(name.isdecimal() for name in self.classes) and not set(self.classes) & set(classes):
            index = {str(i): i for i in range(len(classes))}  # integer labels are indices of any label set
        plain = [tuple(map(_without_brackets, names)) for names in (self.classes, classes)]
        if all(len(set(names)) == len(names) for names in plain):
            by_plain = {name: i for i, name in enumerate(plain[1])}
            index |= {own: by_plain[name] for own, name in zip(self.classes, plain[0]) if name in by_plain}
        counts = collections.Counter(classes) | collections.Counter(self.classes)
        indices = np.arange(len(self.classes))
        used = np.asarray(self.labels.any(axis=0)) if self.multi_label else np.isin(indices, self.labels)
        for i, name in enumerate(self.classes):
            if not used[i] or (name in index and counts[name] == 1):
                continue
            having = self.labels[:, i] > 0 if self.multi_label else self.labels == i
            where = (self.listed_at or self.keys)[int(np.flatnonzero(having)[0])]
            if name not in index:
                raise UserError(f"{where}: label out of range: {unknown('label', name, index)}")
            same = " and ".join(str(j) for j, each in enumerate(classes) if each == name)
            raise UserError(f"{where}: {name!r} is the name of several classes (index {same}); label files by index")
        columns = np.array([index.get(name, 0) for name in self.classes])
        if self.multi_label:
            labels = np.zeros((len(self), len(classes)), np.float32)
            labels[:, columns[used]] = self.labels[:, used]
        else:
            labels = columns[self.labels].astype(np.int32)
        return dataclasses.replace(self, labels=labels, classes=classes)


def _without_brackets(name: str) -> str:
    return name.replace("[", "").replace("]", "")

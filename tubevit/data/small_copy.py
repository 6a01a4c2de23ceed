"""Copies of large training files, small enough to decode in a fraction of the time; made once, in the cache."""

import dataclasses
import hashlib
import logging
import os

from tubevit import storage
from tubevit.data.shard_writer import write_shards
from tubevit.data.shards import INDEX
from tubevit.data.sources import Source, open_source
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import UserError

logger = logging.getLogger(__name__)


def small_copy(source: Source, split: str, short_side: int, max_broken: float) -> Source:
    """Return a source that reads copies of the files with a shorter side of `short_side` pixels.

    They are made by the first call, as `tubevit shard-videos` would; an interrupted call is continued by the next. If a
    local file has a new size or time, all are copied anew. Files that change in a bucket are not noticed.

    Args:
        source: the files; smaller ones are copied as they are.
        split: the split that they are.
        short_side: in pixels.
        max_broken: the share of files that may be broken: they are left out.

    Raises:
        UserError: more files are broken, or none can be decoded.
        OSError: the cache cannot be written.
    """
    folder = str(cache_folder() / "copies" / _digest(source, short_side))
    if not storage.exists(storage.join(folder, INDEX)):
        logger.info(f"copying {len(source)} files of {source.name} with a short side of {short_side} to {folder}")
    # In this process: new ones would run a script without `if __name__ == "__main__"` again.
    counts = write_shards(source, split, folder, short_side=short_side)
    if counts["rejected"]:
        message = f"{counts['rejected']} of the {len(source)} files of {source.name} are broken, see {folder}"
        if counts["rejected"] > max_broken * len(source):
            raise UserError(
                f"{message}; loader.max_broken={max_broken:g} allows fewer; copy_short_side=none of the data set reads "
                "the files themselves, which need not be whole"
            )
        logger.warning(f"{message}; they are left out")
    copied = open_source(f"shards:{folder}", split).with_classes(source.classes)
    return dataclasses.replace(copied, name=source.name, listed=source.listed, notes=source.notes)


def _digest(source: Source, short_side: int) -> str:
    """Return a name that differs for other sources, files, labels or sizes."""
    digest = hashlib.sha256(f"{short_side} {source.label_hash}".encode() + source.labels.tobytes())
    digest.update(storage.encode(source.name))
    for key in source.keys:
        digest.update(storage.encode(key))
        if source.read is None and not storage.is_remote(key):
            found = os.stat(key)
            digest.update(f" {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]

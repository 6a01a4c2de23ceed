"""`moving_digits` and `still_digits`: the embedded data, generated in the cache on first use."""

import contextlib
import logging
import os
import pathlib

from tubevit import publish
from tubevit.data.moving_digits import CSV_FILES, VERSION, make_moving_digits
from tubevit.data.sources.csv_file import open_csv
from tubevit.data.sources.source import Source
from tubevit.errors import MadeMeanwhile, unknown

logger = logging.getLogger(__name__)
HEADS = {"moving_digits": ("motion", "digit_motion"), "still_digits": ("digit",)}  # the first is the default


def cache_folder() -> pathlib.Path:
    """Return the folder of generated and downloaded files: $TUBEVIT_CACHE, by default ~/.cache/tubevit."""
    return pathlib.Path(os.environ.get("TUBEVIT_CACHE") or pathlib.Path.home() / ".cache" / "tubevit").absolute()


def embedded_folder() -> pathlib.Path:
    """Return the folder of the sources `moving_digits` and `still_digits`."""
    return cache_folder() / f"moving_digits_v{VERSION}"


def open_embedded(name: str, split: str, head: str | None) -> Source:
    """Open the embedded data; see `open_source`. Raises UserError for an unknown split or head."""
    heads = HEADS[name]
    if head is not None and head not in heads:
        raise unknown(f"head of {name}", head, heads)
    folder = embedded_folder()
    if not folder.exists():
        _make(folder)
    return open_csv(str(folder / CSV_FILES[head or heads[0]]), split)


def _make(folder: pathlib.Path) -> None:
    """Make the data, unless another process does: this one then waits for it."""
    with publish.locked(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            return
        logger.info(f"making the embedded data in {folder}", extra={"every_process": True})
        with contextlib.suppress(MadeMeanwhile):  # by a process on another machine, for which the lock may not hold
            make_moving_digits(folder)

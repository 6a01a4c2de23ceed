"""Released checkpoints: `checkpoints/index.json` lists them and where their weights are."""

import dataclasses
import fnmatch
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping

from tubevit import publish, storage
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import RunError, UserError, unknown
from tubevit.zoo.archive import is_whole, unpack

logger = logging.getLogger(__name__)
_NAME = re.compile(r"([a-z0-9_]+)@[a-z0-9_]+")
INPUT = ("frames", "fps", "size", "range")


@dataclasses.dataclass(frozen=True)
class Release:
    """An entry of the index.

    Attributes:
        name: `arch@tag`; the tag names data and variant.
        urls: addresses of the archive, mirrors after the first; () if the weights are in `checkpoints/NAME`.
        sha256, bytes: hash and size of the archive NAME.tar that `pack` makes of the folder.
        licence: licence of the weights.
        data: {data set: source} of its training.
        input: frames, fps (None if they are spread over the whole video), size in pixels, and range of pixel values.
        classes: {head: number of classes}.
        metrics: one dict for each evaluated data set: dataset, source, split, head, views, clips, correct (None for
            multi-label data), and top1, top5, map, loss as in eval.json.
        command: command that reproduces these metrics.
        config: the experiment that trained it, as `tubevit train --config` takes it; "" if unknown. The metadata of the
            checkpoint holds all its values.
        commit: commit of the code that released it, with the suffix `-dirty` if the code was modified; None outside of
            a checkout.

    Raises:
        UserError: a value is malformed.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    bytes: int
    licence: str
    data: Mapping[str, str]
    input: Mapping
    classes: Mapping[str, int]
    metrics: tuple[Mapping, ...]
    command: str
    config: str
    commit: str | None

    def __post_init__(self):
        check_name(self.name)
        for name in ("urls", "metrics"):
            if not isinstance(getattr(self, name), list | tuple):
                raise UserError(f"{self.name}: {name} must be a list; found {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for url in self.urls:
            check_url(url)
        if not re.fullmatch("[0-9a-f]{64}", str(self.sha256)):
            raise UserError(f"{self.name}: sha256 must be 64 hexadecimal digits; found {self.sha256!r}")
        if not isinstance(self.bytes, int) or self.bytes < 1:
            raise UserError(f"{self.name}: bytes must be a whole number above 0; found {self.bytes!r}")
        if not isinstance(self.input, Mapping) or set(self.input) != set(INPUT):
            raise UserError(f"{self.name}: input must have {', '.join(INPUT)}; found {self.input!r}")


def check_name(name: str) -> str:
    """Return the architecture of a name `arch@tag`; raises UserError if the name is malformed."""
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(
            "a released checkpoint is named ARCHITECTURE@TAG, in lower-case letters, digits and _, such as "
            f"tubevit_nano8@moving_digits; found {name!r}"
        )
    return match[1]


def check_url(url: str) -> None:
    """Raise UserError unless `url` is an http or https address."""
    if not re.match(r"https?://[^/\s]", str(url)):
        raise UserError(f"the URL of a released checkpoint begins with https:// or http://; found {url!r}")


def is_release(name: str | os.PathLike) -> bool:
    """Whether a name denotes a released checkpoint: it contains an @ and is not a path."""
    name = os.fspath(name)
    return "@" in name and "/" not in name and os.sep not in name


def checkpoints_folder() -> pathlib.Path:
    """Return the folder of index.json and the released weights: in the package of a wheel, beside it in a checkout."""
    package = pathlib.Path(__file__).parent.parent
    inside = package / "checkpoints"
    return inside if inside.is_dir() else package.parent / "checkpoints"


def read_index() -> dict[str, Release]:
    """Read all released checkpoints by name; raises UserError if index.json or an entry is malformed."""
    path = checkpoints_folder() / "index.json"
    try:
        rows = json.loads(path.read_text())
        releases = [Release(**row) for row in rows]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: the installation is incomplete") from error
    except (UserError, ValueError, TypeError) as error:  # not JSON, wrong fields or invalid values
        raise UserError(f"{path} cannot be read: {str(error).replace('Release.__init__() ', '')}") from error
    if len({release.name for release in releases}) < len(releases):
        raise UserError(f"{path} lists a checkpoint twice")
    return {release.name: release for release in releases}


def write_index(releases: Mapping[str, Release]) -> None:
    """Write index.json, sorted by name; inverts `read_index`."""
    rows = [dataclasses.asdict(releases[name]) for name in sorted(releases)]
    text = storage.printable(json.dumps(rows, indent=1, ensure_ascii=False))
    storage.write_text(checkpoints_folder() / "index.json", text + "\n")


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """List the names that match a shell pattern, e.g. `tubevit_b16*`; architectures are grouped by family.

    Args:
        pattern: must match the whole name.
        pretrained: list released checkpoints, for `load_model`, instead of architectures, for `create_model`.

    Raises:
        UserError: the index of the released checkpoints is damaged.
    """
    from tubevit.models.variants import ARCHITECTURES  # loads jax, which the index does not need

    if pretrained:
        return sorted(fnmatch.filter(read_index(), pattern))
    families = list(dict.fromkeys(name.split("_")[0] for name in ARCHITECTURES))
    return sorted(fnmatch.filter(ARCHITECTURES, pattern), key=lambda name: families.index(name.split("_")[0]))


def find_release(name: str) -> pathlib.Path:
    """Find the folder of a released checkpoint in `checkpoints/` or in the cache, or download it to the cache.

    The cache is $TUBEVIT_CACHE, by default ~/.cache/tubevit. An interrupted download is resumed.

    Raises:
        UserError: there is no such release; the message names the closest.
        RunError: its weights are in neither place and cannot be downloaded; the message names the places.
        OSError: the cache cannot be written.
    """
    releases = read_index()
    if name not in releases:
        raise unknown("released checkpoint", name, releases)
    release = releases[name]
    local = checkpoints_folder() / name
    cached = _downloads() / f"{name}-{release.sha256[:12]}" / name
    for folder in (local, cached):
        if is_whole(folder):
            return folder
    looked = f"{name} is neither in {local} nor in {cached}"
    if not release.urls:
        raise RunError(f"{looked}, and its entry names no URL: copy its folder there, or reinstall tubevit")
    _fetch(release, cached, looked)
    return cached


def _downloads() -> pathlib.Path:
    return cache_folder() / "checkpoints"


def is_cached(folder: pathlib.PurePath) -> bool:
    """Whether a folder is a downloaded release, which `find_release` downloads again if it is missing."""
    return _downloads() in folder.parents


def _fetch(release: Release, folder: pathlib.Path, looked: str) -> None:
    """Download and unpack the archive of a release; other processes on this machine wait for it."""
    from tubevit.zoo.download import DownloadError, download

    archive = folder.parent / f"{release.name}.tar"
    with publish.locked(folder.parent / ".lock", keep=True):
        if is_whole(folder):  # by another process
            return
        text = f"downloading {release.name} ({release.bytes / 1e6:.1f} MB) to {folder}"
        logger.info(text, extra={"every_process": True})
        try:
            download(release.urls, archive, release.sha256, release.bytes)
        except DownloadError as error:
            raise RunError(
                f"{looked}, and cannot be downloaded ({error}); is there a network? "
                f"You can also copy the file to {archive}"
            ) from error
        unpack(archive, folder)
        archive.unlink(missing_ok=True)

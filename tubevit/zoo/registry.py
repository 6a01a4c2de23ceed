"""Released checkpoints: `checkpoints/index.json` lists them and where their weights are."""

import dataclasses
import fnmatch
import json
import os
import pathlib
import re
from collections.abc import Mapping

from tubevit import storage
from tubevit.checkpoint.manifest import is_complete
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import RunError, UserError, unknown
from tubevit.zoo.hub_name import is_hub_name, parse_hub_name

_NAME = re.compile(r"([a-z0-9_]+)@[a-z0-9_]+")
_FETCHED = re.compile("hub/models--[^/]+|checkpoints/[^/]+@[^/]+")  # in the cache: from the Hub, or a release
INPUT = ("frames", "fps", "size", "range")


@dataclasses.dataclass(frozen=True)
class Release:
    """An entry of the index.

    Attributes:
        name: `arch@tag`; the tag names data and variant.
        source: where the weights are: "" for `checkpoints/NAME`, `hf://owner/repo@commit` for the Hub, or the address
            of a folder that fsspec can read, such as `gs://bucket/folder`.
        sha256: hash of the manifest of the folder, which has the hashes of all its files.
        bytes: size of these files in all.
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
    source: str
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
        if not isinstance(self.metrics, list | tuple):
            raise UserError(f"{self.name}: metrics must be a list; found {self.metrics!r}")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        check_source(self.source)
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


def check_source(source: str) -> None:
    """Raise UserError unless `source` is "", a name on the Hub, or an address of fsspec."""
    if is_hub_name(source):
        parse_hub_name(source)
    elif source and not re.match(r"[a-z0-9]+://\S", str(source)):
        raise UserError(
            "the source of a released checkpoint is hf://owner/repo, or the address of a folder such as "
            f"gs://bucket/folder; found {source!r}"
        )


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


def cached_remedy(folder: pathlib.PurePath) -> dict[str, str]:
    """Return the argument `remedy` of a Checkpoint: that of its folder if it was fetched to the cache, or none."""
    cache = cache_folder()
    fetched = _FETCHED.match(folder.relative_to(cache).as_posix()) if cache in folder.parents else None
    return {"remedy": f"delete {cache / fetched[0]}, and it is fetched again"} if fetched else {}


def find_release(name: str) -> pathlib.PurePath:
    """Find the folder of a released checkpoint: in `checkpoints/`, or in the cache, to which it is copied if necessary.

    The cache is $TUBEVIT_CACHE, by default ~/.cache/tubevit.

    Raises:
        UserError: there is no such release; the message names the closest. Or its source may not be read.
        RunError: its weights are in neither place and cannot be copied; the message names the places.
        OSError: the cache cannot be written.
    """
    releases = read_index()
    if name not in releases:
        raise unknown("released checkpoint", name, releases)
    release, local = releases[name], checkpoints_folder() / name
    if is_complete(local):
        return local
    if not release.source:
        raise RunError(f"{name} is not in {local}, and its entry names no source: copy its folder there, or reinstall")
    from tubevit.zoo.source import fetch

    return fetch(release)

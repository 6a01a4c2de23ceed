"""Models on the Hugging Face Hub: fetch the files that are needed, refuse harmful ones, convert those of others once.

Everything lies in `$TUBEVIT_CACHE/hub`, laid out by the client, and converted models in `$TUBEVIT_CACHE/converted`, by
commit and code of the converters. A branch is looked up each time; without a network, the commit that it had last is
taken.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Iterator

import jax

from tubevit import convert as convert_package
from tubevit import publish
from tubevit.checkpoint.checkpoint import METADATA_FILE, Checkpoint, only_by_name
from tubevit.checkpoint.manifest import MANIFEST, is_complete, listed_files
from tubevit.code_hash import code_hash
from tubevit.convert import Conversion, convert
from tubevit.convert.files import WEIGHTS, shards_of
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import TubeViTError, UserError, unknown
from tubevit.zoo.hub_name import HubName, is_hub_name, parse_hub_name
from tubevit.zoo.hub_repository import SUFFIXES, Repository
from tubevit.zoo.registry import cached_remedy, is_release

logger = logging.getLogger(__name__)
_TEXTS = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json", "README.md")
_COMPRESSION = 8  # parameters per byte on disk, at most; trained ones take 2 or 4 bytes each


def download(name: HubName, repository: Repository | None = None) -> tuple[pathlib.Path, dict]:
    """Fetch the files of a model, and no others.

    Returns:
        The folder or the file of its weights, and {"hub", "revision"}, where it comes from.

    Raises:
        UserError: there is no model, it is refused, or may not be read; the message begins with the name.
        RunError: it cannot be fetched.
    """
    repository = repository or Repository(name)
    sizes, origin = repository.sizes(), {"hub": name.repo, "revision": repository.commit}
    if name.path in sizes:
        return repository.fetch([name.path], sizes) / name.path, origin
    prefix = f"{name.path}/" if name.path else ""
    inside = [path.removeprefix(prefix) for path in sizes if path.startswith(prefix)]
    if not inside and name.path:
        folders = {path.rpartition("/")[0] for path in sizes} - {""}
        raise unknown(f"path in hf://{name.repo}", name.path, [*folders, *sizes])

    def fetch(files: Iterable[str]) -> pathlib.Path:
        return repository.fetch([prefix + file for file in files], sizes) / name.path

    if METADATA_FILE in inside:
        if MANIFEST not in inside:
            raise UserError(f"{name} is refused: it is an Orbax checkpoint without the {MANIFEST} that tubevit writes")
        content = (fetch([MANIFEST]) / MANIFEST).read_bytes()
        return fetch({MANIFEST, METADATA_FILE, *listed_files(content, str(name))}), origin
    texts = [file for file in _TEXTS if file in inside]
    found = next((file for file in WEIGHTS if file in inside), None) if "config.json" in inside else None
    if found is not None:
        folder = fetch([*texts, found])
        if found.endswith(".json"):
            fetch(shards_of(folder / found))
        return folder, origin
    files = [file for file in inside if "/" not in file and file.endswith(SUFFIXES)]
    if len(files) == 1:
        return fetch(files) / files[0], origin
    raise UserError(
        f"{name} holds no checkpoint; expected an Orbax folder, or config.json with {WEIGHTS[0]}; found "
        + (f"several files: name one of them, such as {_beside(name, files[0])}" if files else _some(inside))
    )


def _beside(name: HubName, file: str) -> HubName:
    return HubName(name.repo, name.revision, f"{name.path}/{file}".lstrip("/"))


def _some(files: list[str]) -> str:
    return ", ".join(sorted(files)[:8]) or "nothing"


@contextlib.contextmanager
def _refusing(name: HubName) -> Iterator[None]:
    """Begin each error with the name, without the place of the cache; whatever harmful files raise is a UserError."""
    try:
        yield
    except TubeViTError as error:
        text = re.sub(rf"{re.escape(str(cache_folder()))}/hub/[^/]+/snapshots/\w+", name.repo, str(error))
        raise type(error)(text if text.startswith(str(name)) else f"{name}: {text}") from error
    except OSError:
        raise
    except Exception as error:  # what others wrote may raise anything
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{name} cannot be read as a model: {type(error).__name__}: {text}") from error


class _Downloaded(Checkpoint):
    """A checkpoint on the Hub: whatever its files hold, an error begins with its name.

    Args:
        folder: where it lies in the cache.
        name: its name on the Hub.
        commit: the commit that was downloaded.
        **settings: the other arguments of `Checkpoint`.
    """

    def __init__(self, folder: pathlib.Path, name: HubName, commit: str, **settings):
        super().__init__(folder, str(name), **settings)
        self._lasting = dataclasses.replace(name, revision=commit)

    def __str__(self) -> str:
        return str(self._lasting)

    def verify(self) -> None:
        """Compare the files with the manifest, see `Checkpoint.verify`."""
        with _refusing(parse_hub_name(self.name)):
            super().verify()

    def read(self, name: str, expected):
        """Read a tree of arrays, see `Checkpoint.read`."""
        with _refusing(parse_hub_name(self.name)):
            return super().read(name, expected)


def convert_hub(
    name: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    open_checkpoint: Callable[[str, int | None], Checkpoint] = only_by_name,
    **settings,
) -> Conversion:
    """Convert a model on the Hub.

    Args:
        name: see `open_hub`.
        dst: as for `convert`.
        open_checkpoint: opens the base of an adapter by name and step.
        **settings: `format` and `options` of `convert`.

    Raises the errors of `convert` and `open_hub`.
    """
    model = parse_hub_name(name)
    with _refusing(model):
        path, origin = download(model)
        if (path / METADATA_FILE).exists():
            checkpoint = _as_saved(model, path, origin["revision"], open_checkpoint)
            return convert(path, dst, open_checkpoint=lambda _: checkpoint, **settings)
        return convert(path, dst, origin=origin, **settings)


def open_hub(name: str | os.PathLike, open_base: Callable[[str, int | None], Checkpoint] = only_by_name) -> Checkpoint:
    """Open a model on the Hub as a checkpoint, and fetch and convert it the first time.

    Args:
        name: `hf://owner/repo[@revision][:subfolder]`.
        open_base: opens the base of an adapter by name and step, see `tubevit.zoo.names.open_checkpoint`.

    Raises:
        UserError: there is no model, it is refused, or may not be read; the message begins with the name.
        RunError: it cannot be fetched.
    """
    model = parse_hub_name(name)
    repository = Repository(model)
    converted = _converted(model, repository.commit)
    with _refusing(model):
        if not is_complete(converted):
            path, origin = download(model, repository)
            if (path / METADATA_FILE).exists():
                return _as_saved(model, path, repository.commit, open_base)
            _convert(model, path, origin, converted)
    return _Downloaded(converted, model, repository.commit, remedy="delete it, and it is converted again")


def _as_saved(
    name: HubName, folder: pathlib.Path, commit: str, open_base: Callable[[str, int | None], Checkpoint]
) -> Checkpoint:
    """Open what `save_model` wrote, or an adapter.

    Raises UserError if it claims arrays that its files cannot hold, which would only fill the memory, or if it is an
    adapter of something on this machine.
    """
    checkpoint = _Downloaded(folder, name, commit, open_base=open_base, **cached_remedy(folder))
    stored = sum(listed_files((folder / MANIFEST).read_bytes(), str(name)).values())
    claimed = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.own_shapes(checkpoint.model)))
    if claimed > _COMPRESSION * stored:
        raise UserError(f"{name} is refused: it claims {claimed:,} parameters in {stored:,} bytes")
    base = checkpoint.base
    if base is not None and not (is_hub_name(base.name) or is_release(base.name)):
        raise UserError(f"{name} is refused: it is an adapter of {base.name}; expected a model on the Hub or a release")
    return checkpoint


def _converted(name: HubName, commit: str) -> pathlib.Path:
    owner, repo = name.repo.split("/")
    code = code_hash(pathlib.Path(convert_package.__file__).parent)[:12]  # a changed converter converts again
    last = "-".join([commit, code, *([urllib.parse.quote(name.path, "")] if name.path else [])])
    return cache_folder() / "converted" / owner / repo / last


def _convert(name: HubName, path: pathlib.Path, origin: dict, folder: pathlib.Path) -> None:
    """Convert what was downloaded; other processes on this machine wait for it."""
    if jax.process_count() > 1:
        raise UserError(
            f"{name} must be converted before a job of several processes uses it: tubevit convert {name} DST, with DST "
            "where every process can read it"
        )
    with publish.locked(folder.parent / ".lock", keep=True):
        if is_complete(folder):  # by another process
            return
        shutil.rmtree(folder, ignore_errors=True)  # files of it were removed
        logger.info(f"converting {name}, commit {origin['revision'][:12]}", extra={"every_process": True})
        for note in convert(path, folder, origin=origin).notes:
            logger.info(f"note: {note}", extra={"every_process": True})

"""Models on the Hugging Face Hub: fetch the files that are needed, refuse harmful ones, convert those of others once.

Everything lies in `$TUBEVIT_CACHE/hub`, laid out by the client, and converted models in `$TUBEVIT_CACHE/converted`, by
commit. A branch is looked up each time; without a network, the commit that it had last is taken.
"""

import contextlib
import glob
import logging
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator

import jax

import tubevit
from tubevit import publish
from tubevit.checkpoint.checkpoint import METADATA_FILE, Checkpoint, only_by_name
from tubevit.checkpoint.manifest import MANIFEST, is_complete, listed_files
from tubevit.convert import Conversion, convert
from tubevit.convert.files import WEIGHTS, shards_of
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import RunError, TubeViTError, UserError, optional_import, unknown
from tubevit.storage import stays_inside
from tubevit.zoo.hub_client import clear_errors, connect, progress_bar
from tubevit.zoo.hub_name import HubName, is_hub_name, parse_hub_name
from tubevit.zoo.registry import cached_remedy, is_release

logger = logging.getLogger(__name__)
LARGEST_WEIGHTS = 40_000_000_000  # bytes of all files of a model: ten times the largest that can be converted
LARGEST_TEXT = 16_000_000  # bytes of a file that is not weights
_TEXTS = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json", "README.md")
_SUFFIXES = (".safetensors", ".npz", ".msgpack", ".pth", ".pt", ".bin")  # of files that hold a whole model
_COMPRESSION = 8  # parameters per byte on disk, at most; trained ones take 2 or 4 bytes each


class Repository:
    """A repository at one commit.

    Args:
        name: which one, and which path in it.

    Attributes:
        name: as given.
        commit: the commit that the revision is.

    Raises:
        UserError, RunError: see `clear_errors`.
    """

    def __init__(self, name: HubName):
        self.name, self._api, self._cache = name, connect(), cache_folder() / "hub"
        with clear_errors(name, self._api):
            self._revision = self._api.resolve_revision(name.repo, revision=name.revision, cache_dir=self._cache)
        self.commit: str = self._revision.resolved

    def sizes(self) -> dict[str, int]:
        """List {file: bytes} of the whole repository; raises UserError if a name would leave the cache."""
        hub, errors = (
            optional_import(module, str(self.name), "hub") for module in ("huggingface_hub", "huggingface_hub.errors")
        )
        where = {"repo_id": self.name.repo, "revision": self._revision}
        with clear_errors(self.name, self._api):
            try:
                entries = hub.get_cached_repo_tree(**where, cache_dir=self._cache)
            except errors.CachedRepoTreeNotFoundError:
                entries = list(self._api.list_repo_tree(**where | {"revision": self.commit}, recursive=True))
        sizes = {entry.path: entry.size for entry in entries if isinstance(entry, hub.RepoFile)}
        for path in sizes:
            if not stays_inside(path):
                raise UserError(f"{self.name} is refused: it names a file {path!r}; expected files inside the folder")
        return sizes

    def fetch(self, wanted: Iterable[str], sizes: dict[str, int]) -> pathlib.Path:
        """Fetch files and return the local folder of the repository.

        New files must have the hashes that the Hub lists; otherwise they are removed.

        Args:
            wanted: paths in the repository.
            sizes: as `sizes` gives them.

        Raises:
            UserError: a file is missing, too large, or a link that leaves the cache.
            RunError: a file cannot be fetched, or has another hash.
        """
        wanted = list(wanted)
        for path in wanted:
            if path not in sizes:
                raise UserError(f"{self.name} lacks {path}, which another file of it names")
            if not _is_weights(path) and sizes[path] > LARGEST_TEXT:
                raise self._too_large(path, sizes[path], LARGEST_TEXT)
        if (total := sum(sizes[path] for path in wanted)) > LARGEST_WEIGHTS:
            raise self._too_large(max(wanted, key=sizes.__getitem__), total, LARGEST_WEIGHTS)
        new = [path for path in wanted if self._cached(path) is None]
        with clear_errors(self.name, self._api):
            folder = self._api.snapshot_download(
                self.name.repo, revision=self._revision, cache_dir=self._cache, tqdm_class=progress_bar(),
                allow_patterns=[glob.escape(path) for path in wanted],
            )  # fmt: skip
        folder = pathlib.Path(folder)
        for path in wanted:
            if not self._is_inside(folder / path):
                raise UserError(f"{self.name} is refused: {path} is a link that leaves the cache")
        if new:
            self._verify(new)
        return folder

    def _is_inside(self, file: pathlib.Path) -> bool:
        return self._cache.resolve() in file.resolve().parents

    def _too_large(self, path: str, found: int, largest: int) -> UserError:
        return UserError(
            f"{self.name} is refused: {path} has {found / 1e6:,.0f} MB; expected at most {largest / 1e6:,.0f}"
        )

    def _cached(self, path: str) -> str | None:
        hub = optional_import("huggingface_hub", str(self.name), "hub")
        found = hub.try_to_load_from_cache(self.name.repo, path, self._cache, self.commit)
        return found if isinstance(found, str) else None

    def _verify(self, new: list[str]) -> None:
        """Compare the hashes of new files with those of the Hub; remove them if that fails."""
        wrong = new
        try:
            with clear_errors(self.name, self._api):
                checked = self._api.verify_repo_checksums(
                    self.name.repo, revision=self.commit, cache_dir=self._cache
                ).mismatches
            wrong = [each["path"] for each in checked]
        finally:
            for path in wrong:
                if (file := self._cached(path)) and self._is_inside(pathlib.Path(file)):
                    pathlib.Path(file).resolve().unlink()
                    pathlib.Path(file).unlink(missing_ok=True)  # the link to it
        if wrong:
            each = checked[0]
            raise RunError(
                f"{self.name}: {each['path']} arrived with the {each['algorithm']} {each['actual']}, the Hub lists "
                f"{each['expected']}; it was removed: try again"
            )


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
        return fetch([MANIFEST, *listed_files(content, str(name))]), origin
    texts = [file for file in _TEXTS if file in inside]
    found = next((file for file in WEIGHTS if file in inside), None) if "config.json" in inside else None
    if found is not None:
        folder = fetch([*texts, found])
        if found.endswith(".json"):
            fetch(shards_of(folder / found))
        return folder, origin
    files = [file for file in inside if "/" not in file and file.endswith(_SUFFIXES)]
    if len(files) == 1:
        return fetch(files) / files[0], origin
    raise UserError(
        f"{name} holds no checkpoint; expected an Orbax folder, or config.json with {WEIGHTS[0]}; found "
        + (f"several files: name one of them, such as {_beside(name, files[0])}" if files else _some(inside))
    )


def _is_weights(path: str) -> bool:
    return path.endswith(_SUFFIXES) or "/d/" in f"/{path}"  # Orbax keeps the arrays in files params/.../d/HASH


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


def convert_hub(name: str | os.PathLike, dst: str | os.PathLike, **settings) -> Conversion:
    """Convert a model on the Hub; see `convert` for `dst` and the settings, and `open_hub` for the errors."""
    name = parse_hub_name(name)
    with _refusing(name):
        path, origin = download(name)
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
    name = parse_hub_name(name)
    repository = Repository(name)
    converted = _converted(name, repository.commit)
    with _refusing(name):
        if not is_complete(converted):
            path, origin = download(name, repository)
            if (path / METADATA_FILE).exists():
                return _as_saved(name, path, open_base)
            _convert(name, path, origin, converted)
    return Checkpoint(converted, str(name), "delete it, and it is converted again")


def _as_saved(name: HubName, folder: pathlib.Path, open_base: Callable[[str, int | None], Checkpoint]) -> Checkpoint:
    """Open what `save_model` wrote, or an adapter.

    Raises UserError if it claims arrays that its files cannot hold, which would only fill the memory, or if it is an
    adapter of something on this machine.
    """
    checkpoint = Checkpoint(folder, str(name), open_base=open_base, **cached_remedy(folder))
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
    last = "-".join([commit, tubevit.__version__, *([urllib.parse.quote(name.path, "")] if name.path else [])])
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
        logger.info(f"converting {name}, commit {origin['revision'][:12]}", extra={"every_process": True})
        for note in convert(path, folder, origin=origin).notes:
            logger.info(f"note: {note}", extra={"every_process": True})

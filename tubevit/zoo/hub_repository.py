"""A repository on the Hugging Face Hub at one commit: what it lists is checked, and files are fetched and verified."""

import glob
import pathlib
import re
from collections.abc import Iterable

from tubevit import publish
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import RunError, UserError, optional_import
from tubevit.storage import stays_inside
from tubevit.zoo.hub_client import clear_errors, connect, progress_bar
from tubevit.zoo.hub_name import HubName

LARGEST_WEIGHTS = 40_000_000_000  # bytes of all files of a model: ten times the largest that can be converted
LARGEST_TEXT = 16_000_000  # bytes of a file that is not weights
SUFFIXES = (".safetensors", ".npz", ".msgpack", ".pth", ".pyth", ".pt", ".bin")  # of files that hold a whole model
_ARRAYS = re.compile(r"(^|/)d/[0-9a-f]{16,}")  # files of Orbax that hold arrays; its others are JSON, or small


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
        # Exists while files of this commit were not compared with their hashes, also after an interruption.
        self._unverified = cache_folder() / "unverified" / name.repo.replace("/", "--") / self.commit

    def sizes(self) -> dict[str, int]:
        """List {file: bytes} of the whole repository; raises UserError if a name would leave the cache."""
        hub = optional_import("huggingface_hub", str(self.name), "hub")
        errors = optional_import("huggingface_hub.errors", str(self.name), "hub")
        with clear_errors(self.name, self._api):
            try:
                entries = hub.get_cached_repo_tree(self.name.repo, revision=self._revision, cache_dir=self._cache)
            except errors.CachedRepoTreeNotFoundError:
                entries = list(self._api.list_repo_tree(self.name.repo, revision=self.commit, recursive=True))
        sizes = {entry.path: entry.size for entry in entries if isinstance(entry, hub.RepoFile)}
        for path in sizes:
            if not stays_inside(path):
                raise UserError(f"{self.name} is refused: it names a file {path!r}; expected files inside the folder")
        return sizes

    def fetch(self, wanted: Iterable[str], sizes: dict[str, int]) -> pathlib.Path:
        """Fetch files and return the local folder of the repository.

        New files must have the hashes that the Hub lists; those that have not are removed.

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
            if sizes[path] > LARGEST_TEXT and not self._is_weights(path):
                raise self._too_large(path, sizes[path], LARGEST_TEXT)
        if (total := sum(sizes[path] for path in wanted)) > LARGEST_WEIGHTS:
            raise self._too_large(max(wanted, key=sizes.__getitem__), total, LARGEST_WEIGHTS)
        if all(map(self._cached, wanted)) and not self._unverified.exists():
            return self._download(wanted)
        with publish.locked(self._unverified.with_name(".lock"), keep=True):  # other processes wait
            self._unverified.touch()
            folder = self._download(wanted)
            self._verify()
            self._unverified.unlink(missing_ok=True)
        return folder

    def _is_weights(self, path: str) -> bool:
        return path == self.name.path or path.endswith(SUFFIXES) or _ARRAYS.search(path) is not None

    def _too_large(self, path: str, found: int, largest: int) -> UserError:
        return UserError(
            f"{self.name} is refused: {path} has {found / 1e6:,.0f} MB; expected at most {largest / 1e6:,.0f}"
        )

    def _download(self, wanted: list[str]) -> pathlib.Path:
        """Let the client fetch what is not in the cache; no request is made if all is."""
        with clear_errors(self.name, self._api):
            folder = self._api.snapshot_download(
                self.name.repo, revision=self._revision, cache_dir=self._cache, tqdm_class=progress_bar(),
                allow_patterns=[glob.escape(path) for path in wanted],
            )  # fmt: skip
        folder = self._cache / pathlib.Path(folder).relative_to(self._cache.resolve())  # the cache may be a link
        for path in wanted:
            if not self._is_inside(folder / path):
                raise UserError(f"{self.name} is refused: {path} is a link that leaves the cache")
        return folder

    def _is_inside(self, file: pathlib.Path) -> bool:
        return self._cache.resolve() in file.resolve().parents

    def _cached(self, path: str) -> str | None:
        hub = optional_import("huggingface_hub", str(self.name), "hub")
        found = hub.try_to_load_from_cache(self.name.repo, path, self._cache, self.commit)
        return found if isinstance(found, str) else None

    def _verify(self) -> None:
        """Compare the hashes of all files that are here with those of the Hub, and remove those that differ."""
        with clear_errors(self.name, self._api):
            checked = self._api.verify_repo_checksums(self.name.repo, revision=self.commit, cache_dir=self._cache)
        for each in checked.mismatches:
            file = pathlib.Path(self._cached(each["path"]) or self._cache)
            if self._is_inside(file):
                file.resolve().unlink()
                file.unlink(missing_ok=True)  # the link to it
        if checked.mismatches:
            each = checked.mismatches[0]
            raise RunError(
                f"{self.name}: {each['path']} arrived with the {each['algorithm']} {each['actual']}, the Hub lists "
                f"{each['expected']}; it was removed: try again"
            )

"""Where the weights of a release lie outside of the package: on the Hub, or in a folder that fsspec reads."""

import contextlib
import hashlib
import logging
import pathlib

from tubevit import publish, storage
from tubevit.checkpoint.checkpoint import MARK
from tubevit.checkpoint.manifest import MANIFEST, is_complete, listed_files, verify
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import MadeMeanwhile, RunError
from tubevit.zoo.hub import open_hub
from tubevit.zoo.hub_name import is_hub_name
from tubevit.zoo.registry import Release

logger = logging.getLogger(__name__)


def fetch(release: Release) -> pathlib.PurePath:
    """Return the folder of a release in the cache, to which its files are copied if necessary.

    Raises:
        UserError: the source may not be read.
        RunError: it cannot be read, or does not hold what was released.
        OSError: the cache cannot be written.
    """
    if is_hub_name(release.source):
        folder = open_hub(release.source).folder
        _check(release, storage.read_bytes(storage.join(folder, MANIFEST)))
        return folder
    folder = cache_folder() / "checkpoints" / f"{release.name}-{release.sha256[:12]}" / release.name
    if is_complete(folder):  # a cache that others filled may be read-only
        return folder
    with publish.locked(folder.parent / ".lock", keep=True):  # other processes on this machine wait
        if not is_complete(folder):
            _copy(release, folder)
    return folder


def _check(release: Release, manifest: bytes) -> None:
    found = hashlib.sha256(manifest).hexdigest()
    if found != release.sha256:
        raise RunError(f"{release.source} is not {release.name}: its {MANIFEST} has the sha256 {found}, "
                       f"expected {release.sha256}")  # fmt: skip


def _copy(release: Release, folder: pathlib.Path) -> None:
    source = release.source
    logger.info(f"copying {release.name} ({release.bytes / 1e6:.1f} MB) from {source}", extra={"every_process": True})
    with (
        contextlib.suppress(MadeMeanwhile),
        publish.creating(folder, replace=lambda found: not is_complete(found)) as temporary,
    ):
        try:
            manifest = storage.read_bytes(storage.join(source, MANIFEST))
            _check(release, manifest)
            for file in listed_files(manifest, source):
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                storage.download(storage.join(source, file), temporary / file)
        except FileNotFoundError as error:
            raise RunError(f"{release.name} is not in the package, and not complete in {source}: {error}") from error
        (temporary / MANIFEST).write_bytes(manifest)
        if problems := verify(temporary):
            raise RunError(f"{source} is damaged: {'; '.join(problems[:5])}")


def copy_to(folder: pathlib.Path, address: str) -> None:
    """Copy all files of a checkpoint to an address of fsspec; raises the errors of `upload`.

    The manifest and the marker of a complete checkpoint are the last ones.
    """
    for file in sorted(storage.list_files(folder), key=lambda file: (file == MARK, file == MANIFEST)):
        storage.upload(folder / file, storage.join(address, file))

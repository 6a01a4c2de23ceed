"""Archives of checkpoints: a tar whose bytes depend on names and contents of the files only."""

import contextlib
import json
import os
import pathlib
import shutil
import tarfile

from tubevit import publish
from tubevit.checkpoint.manifest import MANIFEST
from tubevit.errors import MadeMeanwhile, UserError


def is_whole(folder: pathlib.Path) -> bool:
    """Whether a folder holds a manifest and all the files it lists, with their sizes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return all((folder / file).stat().st_size == entry["bytes"] for file, entry in manifest.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def pack(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Write the manifest of a checkpoint and the files it lists to a new tar, inside a folder of the same name.

    Other files, such as a model card, are left out.

    Raises:
        OSError: a file cannot be read or written.
    """
    folder = pathlib.Path(folder)
    files = sorted([MANIFEST, *json.loads((folder / MANIFEST).read_bytes())])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for file in files:
            info = tarfile.TarInfo(f"{folder.name}/{file}")  # no times, owners or modes
            info.size = (folder / file).stat().st_size
            with (folder / file).open("rb") as stream:
                archive.addfile(info, stream)


def unpack(path: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Unpack an archive that `pack` wrote to a new folder of the same name, which appears once it is complete.

    Args:
        path: the archive.
        folder: the folder; an incomplete one is replaced, a complete one kept.

    Raises:
        UserError: the file is not a tar, or holds anything but plain files inside a folder of this name. Then nothing
            is written.
        OSError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    try:
        with (
            tarfile.open(path, "r:") as archive,
            contextlib.suppress(MadeMeanwhile),
            publish.creating(folder, replace=lambda found: not is_whole(found)) as temporary,
        ):
            members = archive.getmembers()
            for member in members:
                parts = member.name.split("/")
                if not member.isreg() or parts[0] != folder.name or len(parts) < 2 or {"", ".", ".."} & {*parts}:
                    raise UserError(f"{path} is refused: expected plain files in {folder.name}/, found {member.name!r}")
            for member in members:
                target = temporary.joinpath(*member.name.split("/")[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(member) as source, target.open("wb") as file:  # pyright: ignore[reportOptionalContextManager]
                    shutil.copyfileobj(source, file)
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a tar archive: {error}") from error

"""One file of a checkpoint's folder, and back: a tar whose bytes follow from the files' names and contents alone."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tarfile

from tubevit.checkpoint.manifest import MANIFEST
from tubevit.errors import UserError


def is_whole(folder: pathlib.Path) -> bool:
    """Whether a folder is there with its manifest, and with all the files that this names, of their sizes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return all((folder / file).stat().st_size == entry["bytes"] for file, entry in manifest.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def pack(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes the files that a checkpoint's manifest names, and the manifest, into a new tar, below the folder's name.

    Others, such as a model card, are left out.

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
    """Unpacks what `pack` wrote into a new folder of the same name; what a cut-off attempt left there is removed.

    Args:
        path: of the archive.
        folder: appears once it is whole.

    Raises:
        UserError: it is no tar, or holds anything but plain files below the folder's name. Nothing is written then.
        OSError: it cannot be written.
    """
    folder = pathlib.Path(folder)
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            for member in members:
                parts = member.name.split("/")
                if not member.isreg() or parts[0] != folder.name or len(parts) < 2 or {"", ".", ".."} & {*parts}:
                    raise UserError(f"{path} is refused: expected plain files in {folder.name}/, found {member.name!r}")
            for member in members:
                target = temporary.joinpath(*member.name.split("/")[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except tarfile.TarError as error:
        raise UserError(f"{path} is no tar: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)

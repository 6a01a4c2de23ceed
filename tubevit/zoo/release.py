"""A new released checkpoint: its weights, its entry in the index, its model card."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence

import tubevit
from tubevit.checkpoint.checkpoint import MARK, Checkpoint, save_model
from tubevit.checkpoint.manifest import write_manifest
from tubevit.checkpoint.metadata import config_from_metadata
from tubevit.errors import UserError, unknown
from tubevit.models.variants import ARCHITECTURES
from tubevit.zoo import registry
from tubevit.zoo.archive import pack
from tubevit.zoo.card import model_card
from tubevit.zoo.registry import Release

LARGEST = 12_000_000  # bytes that a checkpoint in the repository may have
_SIZES = ("width", "depth", "num_heads", "mlp_dim")
_MEASURED = ("top1", "top5", "map", "loss")


def check_new(name: str, metadata: Mapping, replace: bool = False) -> None:
    """Checks that a run's checkpoint can be released under a name.

    Args:
        name: `arch@tag`.
        metadata: of the run's checkpoint, see `read_metadata`.
        replace: whether there may be a release of that name.

    Raises:
        UserError: the name is malformed, taken, or of another architecture; it is no checkpoint of a run, or of one
            without data to evaluate; or tubevit is installed from a wheel.
    """
    folder = registry.checkpoints_folder()
    if folder.parent == pathlib.Path(tubevit.__file__).parent:
        raise UserError(f"{folder} goes with the next version of tubevit; release from a checkout (pip install -e .)")
    architecture = registry.check_name(name)
    model = config_from_metadata(metadata["model"])
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    sizes = [ARCHITECTURES[architecture][key] for key in _SIZES]
    own_names = (architecture, architecture.removeprefix("tube"))  # the second: bootstrapped or inflated, of that ViT
    if model.name not in own_names and [getattr(model, key) for key in _SIZES] != sizes:
        raise UserError(f"{name} would name a {architecture}; the model is a {model.name}, {model.width} wide")
    if "config" not in metadata:
        raise UserError(f"{name} must come from a run, whose configuration says what it was trained on; found none")
    if not metadata["config"]["data"]["eval"]:
        raise UserError(f"{name} must come from a run with data under data.eval, which it is scored on; found none")
    if (name in registry.read_index() or (folder / name).exists()) and not replace:
        raise UserError(f"{name} is released already; take another tag, or pass --replace")


@contextlib.contextmanager
def staged(name: str) -> Iterator[pathlib.Path]:
    """A path for a new folder called `name`, beside the released ones; what is left there in the end is removed.

    Raises:
        UserError: the folder of the released checkpoints cannot be written.
    """
    folder = registry.checkpoints_folder()
    try:
        temporary = tempfile.mkdtemp(prefix=".release-", dir=folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; release from a checkout of your own") from error
    try:
        yield pathlib.Path(temporary) / name
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(
    checkpoint: Checkpoint, metadata: Mapping, folder: pathlib.Path, dtype: str, most: int | None = LARGEST
) -> None:
    """Writes the parameters of a run's checkpoint with its configuration and step, and their archive beside.

    Args:
        checkpoint: of the run.
        metadata: its.
        folder: of `staged`.
        dtype: `float32` or `bfloat16`.
        most: bytes that the archive may have.

    Raises:
        UserError: the checkpoint is damaged, or the archive too large.
    """
    model = checkpoint.load_model(dtype=dtype)
    save_model(model, folder, {key: metadata[key] for key in ("config", "step") if key in metadata})
    (folder / MARK).write_text("")  # Orbax writes there where it was: a path of this machine
    write_manifest(folder)
    pack(folder, _archive_of(folder))
    found = _archive_of(folder).stat().st_size
    if most is not None and found > most:
        raise UserError(
            f"{folder.name} has {found / 1e6:.1f} MB, the repository takes {most / 1e6:.0f}: pass --bfloat16 for "
            "half of it, or --url with the address where its archive will be"
        )


def _archive_of(folder: pathlib.Path) -> pathlib.Path:
    return folder.parent / "packed.tar"


def publish(
    folder: pathlib.Path,
    metadata: Mapping,
    records: Sequence[Mapping],
    *,
    licence: str,
    config: str = "",
    curves: Mapping[str, bytes] = types.MappingProxyType({}),
    urls: Sequence[str] = (),
    archive: str | os.PathLike | None = None,
) -> Release:
    """Puts staged weights in their place: `checkpoints/NAME` with the card, or the archive; and the entry in the index.

    Args:
        folder: of `write_weights`, called as the release; it is moved.
        metadata: of the run's checkpoint.
        records: what `tubevit evaluate` wrote about the folder.
        licence: of the weights.
        config: see `Release`.
        curves: files about the training that go beside the card, by name; it shows those that are .svg.
        urls: where the archive will be; the weights then do not stay in `checkpoints/`.
        archive: the file to write for them.

    Returns:
        The entry.

    Raises:
        OSError: a file cannot be written.
    """
    name, model, packed = folder.name, config_from_metadata(metadata["model"]), _archive_of(folder)
    with packed.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    release = Release(
        name=name, urls=tuple(urls), sha256=sha256, bytes=packed.stat().st_size, licence=licence,
        data={key: dataset["source"] for key, dataset in metadata["config"]["data"]["train"].items()},
        input={"frames": model.frames, "fps": model.fps, "size": model.size, "range": "uint8 0..255 or float -1..1"},
        classes={head: each.classes for head, each in model.heads},
        metrics=tuple(_metrics(record, metadata) for record in records),
        command=f"tubevit evaluate --checkpoint {name}", config=config,
        commit=_commit(),
    )  # fmt: skip
    if urls:
        shutil.move(packed, archive)
        shutil.rmtree(folder)
        folder.mkdir()
    for file, content in curves.items():
        (folder / file).write_bytes(content)
    pictures = [file for file in curves if file.endswith(".svg")]
    card = model_card(release, model, steps=metadata.get("step"), began=began_from(metadata), curves=pictures)
    (folder / "README.md").write_text(card)
    place = registry.checkpoints_folder() / name
    if place.exists():
        place.rename(folder.parent / "replaced")
    folder.rename(place)
    registry.write_index(registry.read_index() | {name: release})
    return release


def _metrics(record: Mapping, metadata: Mapping) -> dict:
    """What the index says of a record of eval.json; its source as the configuration names it, not where it lay."""
    names = ("split", "head", "views")
    source = metadata["config"]["data"]["eval"][record["dataset"]]["source"]
    top1, clips = record["top1"], record["clips_used"]
    counts = {"clips": clips, "correct": None if top1 is None else round(top1 * clips)}
    what = {"dataset": record["dataset"], "source": source} | {key: record[key] for key in names}
    return what | counts | {key: record[key] for key in _MEASURED}


def began_from(metadata: Mapping) -> list[str]:
    """The checkpoints that the training of a run's checkpoint began from."""
    init = metadata["config"].get("init", {})
    words = ("same", "inflate", "zero", "random")
    return [name for name in (init.get("checkpoint"), init.get("tubes")) if name and name not in words]


def _commit() -> str | None:
    """Of the checkout that this package lies in; what changes in `checkpoints/` does not count as a change."""
    root = pathlib.Path(tubevit.__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)checkpoints")
        return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None

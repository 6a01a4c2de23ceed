"""Make a checkpoint a released one: its weights, its entry in the index, its model card."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence

import tubevit
from tubevit import publish, storage, writable
from tubevit.checkpoint.checkpoint import MARK, Checkpoint, save_model
from tubevit.checkpoint.manifest import write_manifest
from tubevit.errors import UserError, cannot_write, unknown
from tubevit.models.variants import ARCHITECTURES
from tubevit.zoo import registry
from tubevit.zoo.archive import pack
from tubevit.zoo.card import model_card
from tubevit.zoo.registry import Release

LARGEST = 12_000_000  # bytes that a checkpoint in the repository may have
_SIZES = ("width", "depth", "num_heads", "mlp_dim")
_MEASURED = ("top1", "top5", "map", "loss")


@dataclasses.dataclass(frozen=True)
class ReleaseOptions:
    """Options of a new release.

    Attributes:
        dtype: `float32` or `bfloat16`, of the stored weights.
        licence: licence of the weights.
        config: the experiment that trained it, see `Release`.
        split: the split that `evaluate` takes of each data set; None for that of the run.
        urls: addresses where the archive will be, mirrors after the first. The weights are then written to `archive`,
            not to `checkpoints/`.
        archive: file for the weights; by default NAME.tar in the current folder.
        replace: replace a release of the same name.
        largest: maximum size in bytes of weights in `checkpoints/`.

    Raises:
        UserError: a URL is malformed.
    """

    dtype: str = "float32"
    licence: str = "Apache-2.0"
    config: str = ""
    split: str | None = None
    urls: tuple[str, ...] = ()
    archive: str | os.PathLike | None = None
    replace: bool = False
    largest: int = LARGEST

    def __post_init__(self):
        for url in self.urls:
            registry.check_url(url)


def release(
    checkpoint: Checkpoint,
    name: str,
    options: ReleaseOptions = ReleaseOptions(),
    *,
    evaluate: Callable[[Checkpoint], Sequence[Mapping]],
    draw: Callable[[Checkpoint], Mapping[str, bytes]] = lambda checkpoint: {},
) -> Release:
    """Release a checkpoint of a run: write weights, card and index entry, which is returned, and evaluate the weights.

    Args:
        checkpoint: a checkpoint of a run.
        name: `arch@tag`.
        options: see `ReleaseOptions`.
        evaluate: returns the records of eval.json for the checkpoint that it is given, the weights as they are stored.
        draw: returns files about the training, by name, to lie beside the card; the card shows those that are .svg.

    Raises:
        UserError: the checkpoint cannot be released under this name, is damaged or too large.
        MadeMeanwhile: another process made the archive.
        OSError: a file cannot be written; then the earlier release is as before.
    """
    check_new(name, checkpoint, options.replace)
    curves = draw(checkpoint)
    archive = pathlib.Path(options.archive or f"{name}.tar")
    if options.urls and archive.exists() and not options.replace:
        raise UserError(f"{archive} exists already: move it away, or pass --replace")
    if options.urls:
        writable.check_file(archive, "run the command in another folder")
    place = registry.checkpoints_folder() / name
    with _beside_releases() as temporary, publish.naming(place):
        folder, packed = pathlib.Path(temporary) / name, pathlib.Path(temporary) / "packed.tar"
        _write_weights(checkpoint, folder, packed, options)
        entry = _entry(checkpoint, name, packed, options, evaluate(Checkpoint(folder)))
        if options.urls:
            shutil.rmtree(folder)
            folder.mkdir()
        for file, content in curves.items():
            (folder / file).write_bytes(content)
        pictures = [file for file in curves if file.endswith(".svg")]
        card = model_card(entry, checkpoint.model, steps=checkpoint.step, began=began_from(checkpoint), curves=pictures)
        storage.write_text(folder / "README.md", storage.printable(card))
        with publish.locked(place.with_name(".lock")), contextlib.ExitStack() as undo:
            check_new(name, checkpoint, options.replace)  # another process may have released it meanwhile
            copying = publish.creating(archive, replace=lambda found: options.replace)
            with copying if options.urls else contextlib.nullcontext() as copied:
                if copied is not None:
                    shutil.copyfile(packed, copied)
                if place.exists():
                    replaced = place.rename(pathlib.Path(temporary) / "replaced")
                    undo.callback(replaced.rename, place)
                folder.rename(place)
                undo.callback(place.rename, folder)
                before = registry.read_index()
                registry.write_index(before | {name: entry})
                undo.callback(registry.write_index, before)
            undo.pop_all()
    return entry


def check_new(name: str, checkpoint: Checkpoint, replace: bool = False) -> None:
    """Check that a checkpoint of a run can be released under a name.

    Args:
        name: `arch@tag`.
        checkpoint: the checkpoint.
        replace: allow a release of the same name.

    Raises:
        UserError: the name is malformed, taken, or names another architecture; the checkpoint is not of a run, or of
            a run without evaluation data; or tubevit is installed from a wheel.
    """
    folder = registry.checkpoints_folder()
    if folder.parent == pathlib.Path(tubevit.__file__).parent:
        raise UserError(f"{folder} belongs to the installed package; release from a checkout (pip install -e .)")
    architecture, model = registry.check_name(name), checkpoint.model
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    sizes = [ARCHITECTURES[architecture][key] for key in _SIZES]
    own_names = (architecture, architecture.removeprefix("tube"))  # the second if bootstrapped or inflated from a ViT
    if model.name not in own_names and [getattr(model, key) for key in _SIZES] != sizes:
        raise UserError(f"{name} would name a {architecture}; the model is a {model.name}, {model.width} wide")
    if not checkpoint.experiment:
        raise UserError(f"{name} must come from a run, whose configuration names its training data; found none")
    if not checkpoint.experiment["data"]["eval"]:
        raise UserError(f"{name} must come from a run with evaluation data under data.eval; found none")
    if (name in registry.read_index() or (folder / name).exists()) and not replace:
        raise UserError(f"{name} is released already; take another tag, or pass --replace")


def _beside_releases() -> tempfile.TemporaryDirectory:
    folder = registry.checkpoints_folder()
    try:
        return tempfile.TemporaryDirectory(prefix=".release-", dir=folder)
    except OSError as error:
        raise cannot_write(folder, error, "release from a checkout of your own") from error


def _write_weights(checkpoint: Checkpoint, folder: pathlib.Path, packed: pathlib.Path, options: ReleaseOptions) -> None:
    """Write the parameters with configuration and step into a folder, and its archive."""
    stored = {key: checkpoint.metadata[key] for key in ("config", "step") if key in checkpoint.metadata}
    save_model(checkpoint.load_model(dtype=options.dtype), folder, stored)
    (folder / MARK).write_text("")  # Orbax writes the path of the folder there
    write_manifest(folder)
    pack(folder, packed)
    found = packed.stat().st_size
    if not options.urls and found > options.largest:
        raise UserError(
            f"{folder.name} has {found / 1e6:.1f} MB, the repository takes {options.largest / 1e6:.0f}: pass "
            "--bfloat16 for half of it, or --url with the address where its archive will be"
        )


def _entry(
    checkpoint: Checkpoint, name: str, packed: pathlib.Path, options: ReleaseOptions, records: Sequence[Mapping]
) -> Release:
    model, data = checkpoint.model, checkpoint.experiment["data"]
    with packed.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Release(
        name=name, urls=options.urls, sha256=sha256, bytes=packed.stat().st_size, licence=options.licence,
        data={key: dataset["source"] for key, dataset in data["train"].items()},
        input={"frames": model.frames, "fps": model.fps, "size": model.size, "range": "uint8 0..255 or float -1..1"},
        classes={head: each.classes for head, each in model.heads},
        metrics=tuple(_metrics(record, data["eval"][record["dataset"]]["source"]) for record in records),
        command=f"tubevit evaluate --checkpoint {name}" + (f" --split {options.split}" if options.split else ""),
        config=options.config,
        commit=_commit(),
    )  # fmt: skip


def _metrics(record: Mapping, source: str) -> dict:
    """Return what the index holds of a record of eval.json; `source` as the configuration has it, not its path here."""
    top1, clips = record["top1"], record["clips_used"]
    about = {"dataset": record["dataset"], "source": source} | {key: record[key] for key in ("split", "head", "views")}
    counts = {"clips": clips, "correct": None if top1 is None else round(top1 * clips)}
    return about | counts | {key: record[key] for key in _MEASURED}


def began_from(checkpoint: Checkpoint) -> list[str]:
    """List the checkpoints that the training of a run started from."""
    init = checkpoint.experiment.get("init", {})
    words = ("same", "inflate", "zero", "random")
    return [name for name in (init.get("checkpoint"), init.get("tubes")) if name and name not in words]


def _commit() -> str | None:
    """Return the commit of the checkout that holds this package; changes in `checkpoints/` do not make it dirty."""
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

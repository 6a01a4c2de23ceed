"""Make a checkpoint a released one: its weights, here or on the Hub, its model card, its entry in the index."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence

import tubevit
from tubevit import publish, storage
from tubevit.checkpoint.checkpoint import MARK, Checkpoint, save_model
from tubevit.checkpoint.manifest import MANIFEST, listed_files, write_manifest
from tubevit.errors import UserError, cannot_write, unknown
from tubevit.models.variants import ARCHITECTURES
from tubevit.private import check_no_secrets, shareable
from tubevit.zoo import registry
from tubevit.zoo.card import model_card
from tubevit.zoo.hub_name import is_hub_name
from tubevit.zoo.hub_upload import HubUpload, card_metadata, licence_fields
from tubevit.zoo.registry import Release
from tubevit.zoo.source import copy_to

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
        to: where the weights and the card are published: `hf://owner/repo`, or an address of fsspec; "" keeps them in
            `checkpoints/`.
        replace: replace a release of the same name, and a checkpoint at `to`.
        largest: maximum size in bytes of weights in `checkpoints/`.

    Raises:
        UserError: the licence or the address is malformed.
    """

    dtype: str = "float32"
    licence: str = "Apache-2.0"
    config: str = ""
    split: str | None = None
    to: str = ""
    replace: bool = False
    largest: int = LARGEST

    def __post_init__(self):
        licence_fields(self.licence)
        registry.check_source(self.to)


class _Stored(Checkpoint):
    """The weights as they are stored, with the configuration of the run, whose paths are private but needed here."""

    def __init__(self, folder: pathlib.Path, run: Checkpoint):
        super().__init__(folder)
        self._run = run

    @property
    def experiment(self) -> dict:
        """The configuration of the run."""
        return self._run.experiment


def release(
    checkpoint: Checkpoint,
    name: str,
    options: ReleaseOptions = ReleaseOptions(),
    *,
    evaluate: Callable[[Checkpoint], Sequence[Mapping]],
    draw: Callable[[Checkpoint], Mapping[str, bytes]] = lambda checkpoint: {},
) -> Release:
    """Release a checkpoint of a run: write weights, card and index entry, which is returned, and evaluate the weights.

    With `options.to`, weights, card and figures are published there, and the index of a checkout gets the entry.
    Absolute paths are shortened in all of them, see `private.shareable`.

    Args:
        checkpoint: a checkpoint of a run.
        name: `arch@tag`.
        options: see `ReleaseOptions`.
        evaluate: returns the records of eval.json for the checkpoint that it is given, the weights as they are stored.
        draw: returns files about the training, by name, to lie beside the card; the card shows those that are .svg.

    Raises:
        UserError: the checkpoint cannot be released under this name, is damaged or too large, holds a secret, or may
            not be published there.
        RunError: the place is out of reach.
        OSError: a file cannot be written; then the earlier release is as before.
    """
    check_new(name, checkpoint, options)
    upload = HubUpload(options.to, options.replace) if is_hub_name(options.to) else None
    place, curves = registry.checkpoints_folder() / name, draw(checkpoint)
    began, pictures = shareable(began_from(checkpoint)), [file for file in curves if file.endswith(".svg")]
    with _temporary() as temporary, publish.naming(place):
        folder = pathlib.Path(temporary) / name
        _write_weights(checkpoint, folder, options)
        for file, content in curves.items():
            (folder / file).write_bytes(content)

        def described(records: Sequence[Mapping]) -> tuple[Release, str]:
            """Write the card beside the weights; return the entry and the card, without what the Hub reads of it."""
            entry = _entry(checkpoint, name, folder, options, records)
            card = model_card(entry, checkpoint.model, steps=checkpoint.step, began=began, curves=pictures)
            metadata = card_metadata(entry, checkpoint.model, began) if upload else ""
            storage.write_text(folder / "README.md", storage.printable(metadata + card))
            _check_private(folder, name, options, upload, json.dumps(dataclasses.asdict(entry)))
            return entry, card

        described([])  # a secret is found before the evaluation, which may take hours
        entry, card = described(evaluate(_Stored(folder, checkpoint)))
        if options.to:
            entry = dataclasses.replace(entry, source=_publish(folder, options.to, upload, name))
            shutil.rmtree(folder)
            folder.mkdir()
            for file, content in curves.items():
                (folder / file).write_bytes(content)
            storage.write_text(folder / "README.md", storage.printable(card))
        if is_checkout():
            _add_to_index(checkpoint, name, options, folder, entry)
    return entry


def _publish(folder: pathlib.Path, to: str, upload: HubUpload | None, name: str) -> str:
    """Publish a folder; returns the source for the index."""
    if upload:
        return upload.commit(folder, f"Release {name}")
    copy_to(folder, to)
    return to


def _add_to_index(
    checkpoint: Checkpoint, name: str, options: ReleaseOptions, folder: pathlib.Path, entry: Release
) -> None:
    """Move the folder to its place and write the entry, both or neither."""
    place = registry.checkpoints_folder() / name
    with publish.locked(place.with_name(".lock")), contextlib.ExitStack() as undo:
        check_new(name, checkpoint, dataclasses.replace(options, to=""))  # another process may have made it meanwhile
        if place.exists():
            replaced = place.rename(folder.with_name("replaced"))
            undo.callback(replaced.rename, place)
        folder.rename(place)
        undo.callback(place.rename, folder)
        before = registry.read_index()
        registry.write_index(before | {name: entry})
        undo.pop_all()


def is_checkout() -> bool:
    """Whether this package is a checkout, whose releases can be changed; else it is installed from a wheel."""
    return registry.checkpoints_folder().parent != pathlib.Path(tubevit.__file__).parent


def check_new(name: str, checkpoint: Checkpoint, options: ReleaseOptions = ReleaseOptions()) -> None:
    """Check that a checkpoint of a run can be released under a name.

    Args:
        name: `arch@tag`.
        checkpoint: the checkpoint.
        options: whether it may replace a release of the same name, and where it is published.

    Raises:
        UserError: the name is malformed, taken, or names another architecture; the checkpoint is not of a run, or of
            a run without evaluation data; something is published there; or tubevit is installed from a wheel and
            the release is to be kept in it.
    """
    folder = registry.checkpoints_folder()
    if not is_checkout() and not options.to:
        raise UserError(
            f"{folder} belongs to the installed package; release from a checkout (pip install -e .), or publish it "
            "with --to hf://owner/repo"
        )
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
    if options.replace:
        return
    if is_checkout() and (name in registry.read_index() or (folder / name).exists()):
        raise UserError(f"{name} is released already; take another tag, or pass --replace")
    if options.to and not is_hub_name(options.to) and storage.exists(storage.join(options.to, MANIFEST)):
        raise UserError(f"{options.to} holds a checkpoint already; take another address, or pass --replace")


def _temporary() -> tempfile.TemporaryDirectory:
    """Make a temporary folder, in a checkout beside the releases, where it can be renamed to its place."""
    if not is_checkout():
        return tempfile.TemporaryDirectory(prefix="tubevit-release-")
    folder = registry.checkpoints_folder()
    try:
        return tempfile.TemporaryDirectory(prefix=".release-", dir=folder)
    except OSError as error:
        raise cannot_write(folder, error, "release from a checkout of your own") from error


def _write_weights(checkpoint: Checkpoint, folder: pathlib.Path, options: ReleaseOptions) -> None:
    """Write the parameters with configuration and step into a folder."""
    stored = {key: checkpoint.metadata[key] for key in ("config", "step") if key in checkpoint.metadata}
    save_model(checkpoint.load_model(dtype=options.dtype), folder, shareable(stored))
    (folder / MARK).write_text("")  # Orbax writes the path of the folder there
    write_manifest(folder)
    found = _size(folder)
    if not options.to and found > options.largest:
        raise UserError(
            f"{folder.name} has {found / 1e6:.1f} MB, the repository takes {options.largest / 1e6:.0f}: pass "
            "--bfloat16 for half of it, or publish it with --to hf://owner/repo"
        )


def _size(folder: pathlib.Path) -> int:
    return sum(listed_files((folder / MANIFEST).read_bytes(), str(folder)).values())


def _check_private(
    folder: pathlib.Path, name: str, options: ReleaseOptions, upload: HubUpload | None, entry: str
) -> None:
    """Raise UserError if a file that will be public, or the entry of the index, holds a secret."""
    files = [file for file in storage.list_files(folder) if "/d/" not in file]  # all but the arrays
    contents = {file: (folder / file).read_bytes() for file in files} | {"the entry of the index": entry.encode()}
    chosen = " ".join(filter(None, (name, options.to, options.licence, options.config, options.split, _commit())))
    check_no_secrets(contents, chosen, upload.secrets() if upload else None)


def _entry(
    checkpoint: Checkpoint, name: str, folder: pathlib.Path, options: ReleaseOptions, records: Sequence[Mapping]
) -> Release:
    model, data = checkpoint.model, checkpoint.experiment["data"]
    split = f" --split {options.split}" if options.split else ""
    values = dict(
        name=name, source=options.to, sha256=hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        bytes=_size(folder), licence=options.licence,
        data={key: dataset["source"] for key, dataset in data["train"].items()},
        input={"frames": model.frames, "fps": model.fps, "size": model.size, "range": "uint8 0..255 or float -1..1"},
        classes={head: each.classes for head, each in model.heads},
        metrics=tuple(_metrics(record, data["eval"][record["dataset"]]["source"]) for record in records),
        command=f"tubevit evaluate --checkpoint {options.to or name}{split}", config=options.config, commit=_commit(),
    )  # fmt: skip
    return Release(**shareable(values))


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

"""What fine-tuning and bootstrapping derive from data and checkpoints."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from ml_collections import ConfigDict

from tubevit.config.config import check_config, flatten, locked, model_fields, set_value
from tubevit.config.keys import defining_keys, find_key
from tubevit.data.decode import decode_media
from tubevit.data.sources import CLASSES, Source, default_head, held_out_split, open_source
from tubevit.data.sources.splits import held_out_beside
from tubevit.data.warp import frame_size
from tubevit.errors import DecodeError, UserError
from tubevit.models.config import ModelConfig
from tubevit.models.variants import model_config
from tubevit.transfer.dense import sparse_config
from tubevit.transfer.small_to_large import bootstrapped_config, inflated_config
from tubevit.zoo.names import named_config, open_checkpoint
from tubevit.zoo.registry import read_index

PROBED = 12  # files that are looked at
LONGEST_SPAN = 10.0  # seconds that a clip covers at most: Kinetics' clips are as long
SMALL = 96  # pixels of the short side up to which the models of the embedded data are taken
FEW = 5_000  # training files below which fine-tuning takes a released checkpoint, or a model of that size
LARGE = 1024  # width of L
NARROW = 96  # width up to which fine-tuning takes Muon, not AdamW, and trains a checkpoint as long as from scratch
WEIGHT_DECAY = {"muon": 0.2, "adamw": 0.05, "adam": 0.0}  # with adam, it would be part of the gradient
COPY_SIDE = 1.5  # short side of copies of training files, as a multiple of the input: crops are rarely enlarged
COPIED_FILES = 20_000  # most files that are copied
_OF_COPYING = 4  # times as long as decoding a clip: all frames are decoded, and encoded again
KINETICS_FPS = 15.0
T = TypeVar("T")


def apply_recipe(config: ConfigDict, open_source: Callable[..., Source] = open_source):
    """Fill in what the group `recipe` of a configuration asks for; keys that are set stay as they are.

    Returns:
        The configuration without the group, lines for the user, and the seconds to decode a clip or None.

    Raises:
        UserError: data or checkpoints are missing or do not fit.
    """
    config = config.copy_and_resolve_references()
    if "recipe" not in config:
        return config, [], None
    derive = {"finetune": _finetune, "bootstrap": _bootstrap}[config.recipe.name]
    values, notes, decoding = derive(config, open_source)
    flat = flatten(config)
    for path, value in values.items():
        if flat[path] is None and path not in config.recipe.unset:
            set_value(config, path, value)
    config.unlock()
    del config.recipe
    check_config(locked(config))
    return config, notes(config), decoding


def kinetics_rates(width: int) -> tuple[float, float]:
    """Return learning rate and weight decay on Kinetics for a model of a width (Table 10)."""
    return (1e-5, 1e-5) if width >= LARGE else (5e-5, 1e-3)


def _model_values(model: ModelConfig) -> dict:
    values = {path: getattr(model, path.partition(".")[2]) for path in defining_keys()}
    return values | {"model.tubes": str(model.tubes)}


@dataclasses.dataclass(frozen=True)
class Probe:
    """What some files of a source are like.

    Attributes:
        short_side: median, in pixels.
        seconds: median length of a video; None for images.
    """

    short_side: int
    seconds: float | None


def probe(source: Source) -> Probe:
    """Look at a frame of some files, see `_of_some`."""

    def look(index: int) -> tuple[int, float | None]:
        decoded = decode_media(source.media(index), 1)  # long videos are not read to their end
        source.check_kind(index, decoded.kind)
        return min(frame_size(decoded.frames[0])), decoded.seconds

    sides, lengths = zip(*_of_some(source, look))
    known = [length for length in lengths if length]
    return Probe(int(np.median(sides)), float(np.median(known)) if known else None)


def clip_decoding(source: Source, frames: int, fps: float | None) -> float:
    """Return the median time, in seconds, to decode a clip of one of some files, see `_of_some`."""

    def look(index: int) -> float:
        media = source.media(index)
        start = time.perf_counter()
        decode_media(media, frames, fps)
        return time.perf_counter() - start

    return float(np.median(_of_some(source, look)))


def _of_some(source: Source, look: Callable[[int], T]) -> list[T]:
    """Look at some files, evenly spread over the source; raises UserError if none of them can be decoded."""
    found, last = [], None
    for index in np.unique(np.linspace(0, len(source) - 1, PROBED).astype(int)):
        try:
            found.append(look(int(index)))
        except DecodeError as error:
            last = error
    if not found:
        raise UserError(f"none of {PROBED} files of {source.name} can be decoded: {last}")
    return found


def _finetune(config: ConfigDict, open_source: Callable[..., Source]):
    """See the table of `tubevit.recipes.finetune.finetune_config`."""
    checkpoint, data = config.init.checkpoint, config.data.train.data.source
    if checkpoint and config.recipe.model:
        raise UserError("model= goes without init=: the checkpoint has its own")
    head, overlap = config.data.train.data.head or default_head(data, "data"), config.data.train.data.allow_overlap
    train = open_source(data, config.data.train.data.split, head, overlap)
    evaluated = config.data.eval.data
    split = evaluated.split or held_out_beside(config.data.train.data.split)
    split = split or held_out_split(evaluated.source, head, overlap, open_source)
    looks, fps = probe(train), None
    if len(train.classes) < 2 and not train.multi_label:
        raise UserError(
            f"{data} has a single class, {', '.join(train.classes)}: expected two or more (in a folder, each class has "
            "a folder of its own)"
        )
    chosen = None
    if not checkpoint and config.recipe.closest and len(train) < FEW and not _asks_for_random_parameters(config):
        checkpoint = chosen = closest_release(config.input.size or looks.short_side)
    if checkpoint:
        stored = open_checkpoint(checkpoint).model
        if config.recipe.tubes:
            stored = sparse_config(stored, config.recipe.tubes, checkpoint)
        elif stored.is_plain_vit and train.modality == "video":
            stored = inflated_config(stored)
        values, fps = _model_values(stored) | {"model.scan": stored.scan}, stored.fps
    else:
        small = looks.short_side <= SMALL or len(train) < FEW
        variant = config.recipe.model or ("tubevit_nano8" if small else "tubevit_ti16")
        stored = model_config(
            **{"name": variant, **model_fields(config)}
        )  # keys of the user change what follows from it
        values = {path: find_key(path).default for path in defining_keys()} | {"model.scan": False}
        values |= {"model.name": stored.name, "input.frames": stored.frames, "input.size": stored.size}
    frames, size = config.input.frames or stored.frames, config.input.size or stored.size
    if looks.seconds is not None:
        fps = fps or round(frames / min(looks.seconds, LONGEST_SPAN), 2)
        values["input.fps"] = fps

    held_out = open_source(evaluated.source, split, head, overlap)
    # A power of two divides over the chips of a host.
    batch_size = config.data.train.data.batch_size or 2 ** int(np.log2(min(32, len(train))))
    short = checkpoint and stored.width > NARROW  # narrow models are cheap, and better for more steps
    epochs, fewest, most = (30, 5_000, 20_000) if short else (100, 20_000, 40_000)
    samples = int(np.clip(epochs * len(train), fewest, max(most, 3 * len(train))))
    usual = max(samples // batch_size, 1)
    steps = config.train.steps or usual
    ramp = min(steps, usual)  # so that a run that ends may be continued with more steps
    adapter = config.train.adapter != "none"
    name = config.optimizer.name or ("muon" if stored.width <= NARROW and not adapter else "adamw")
    muon = name == "muon"
    rate = (1e-2 if muon else 1.2e-3) * 96 / stored.width * (1 / 3 if checkpoint else 1) * (10 if adapter else 1)
    copy_side = 16 * math.ceil(COPY_SIDE * size / 16)
    copied = looks.short_side >= 2 * copy_side and len(train) <= COPIED_FILES
    values |= {
        "init.checkpoint": checkpoint, "optimizer.name": name, "optimizer.weight_decay": WEIGHT_DECAY[name],
        "optimizer.b2": 0.98 if muon else 0.999, "optimizer.ema_decay": max(1 - 10 / ramp, 0.0),
        "optimizer.learning_rate": float(f"{rate:.2g}"), "optimizer.warmup_steps": ramp // 10,
        "data.train.data.copy_short_side": copy_side if copied else None,
        "train.steps": steps, "train.label_smoothing": 0.0 if train.multi_label else 0.1,
        "data.train.data.batch_size": batch_size,
        "data.train.data.augment.area": 0.5 if len(train) < 10_000 else 0.3,
        "data.eval.data.batch_size": batch_size, "data.eval.data.split": split,
        "eval.every": max(steps // 5, 1), "checkpoint.every": max(steps // 5, 1),
        "checkpoint.keep_best": f"eval/data/{'map' if train.multi_label else 'top1'}",
        "log.every": max(steps // 50, 1), "loader.max_broken": _broken_share(min(len(train), len(held_out))),
    }  # fmt: skip
    fps = None if "input.fps" in config.recipe.unset else config.input.fps or fps
    decoding = clip_decoding(train, frames, fps)
    notes = functools.partial(_finetune_notes, train, held_out, looks, decoding, chosen)
    return values, notes, decoding


def _broken_share(files: int) -> float:
    """Return the share of files that may be broken: 5 %, or one file, rounded up, if that is at most a tenth."""
    one = math.ceil(1e4 / files) / 1e4
    return max(0.05, one if one <= 0.1 else 0.0)


def closest_release(size: int) -> str | None:
    """Return the released checkpoint whose input is closest to a size in pixels, the smallest of several.

    Returns None if there is no release. Raises UserError if the index of the released checkpoints is damaged.
    """
    ranked = [(abs(math.log(each.input["size"] / size)), each.bytes, name) for name, each in read_index().items()]
    return min(ranked)[-1] if ranked else None


def about_minutes(seconds: float) -> str:
    """Describe an estimate in seconds as text, in whole minutes."""
    return "about a minute" if seconds < 90 else f"about {seconds / 60:.0f} minutes"


def _asks_for_random_parameters(config: ConfigDict) -> bool:
    """Return whether the user set `init.checkpoint` to none, or a key of the model, which a checkpoint would fix."""
    flat = flatten(config)
    model = [path for path in defining_keys() if path.startswith("model.") and flat[path] is not None]
    return bool(model) or "init.checkpoint" in config.recipe.unset


def _finetune_notes(
    train: Source, held_out: Source, looks: Probe, decoding: float, chosen: str | None, config: ConfigDict
) -> list[str]:
    dataset, split = config.data.train.data, config.data.eval.data.split
    model = model_config(**model_fields(config), num_classes=max(len(train.classes), 1))
    image = train.modality == "image"
    shape = (1 if image else model.frames, model.size, model.size)
    length = f", {looks.seconds:.1f} s" if looks.seconds else ""
    fps = "" if image or config.input.fps is None else f" at {config.input.fps:g} frames per second"
    augment = {key: dataset.augment[key] for key in ("random_crop", "area", "flip", "colour_jitter")}
    epochs = config.train.steps * dataset.batch_size / len(train)
    adapter = "" if model.lora is None else f", adapters of rank {model.lora.rank}"
    choice = f" (init={chosen} keeps this choice, init=none begins from scratch)" if chosen else ""
    covered = None if not looks.seconds or config.input.fps is None else model.frames / config.input.fps
    copying = _OF_COPYING * len(train) * decoding * max(1, (looks.seconds or 0) / (covered or math.inf))
    copies = [
        f"copies: training reads copies with a short side of {dataset.copy_short_side} pixels, made once in the cache "
        f"({about_minutes(copying)})"
    ]
    return [
        f"data: {len(train)} files to train, {len(held_out)} to evaluate (split {split}), {len(train.classes)} "
        f"classes; median short side {looks.short_side} pixels{length}",
        f"model: {config.model.name} from {config.init.checkpoint or 'scratch'}{adapter}{choice}, "
        f"input {'x'.join(map(str, shape))}{fps}",
        f"training: {config.train.steps} steps of {dataset.batch_size} ({epochs:.0f} epochs), warm-up "
        f"{config.optimizer.warmup_steps}, {config.optimizer.name}, learning rate {config.optimizer.learning_rate:g} "
        "(--config.KEY=VALUE changes any)",
        *(copies if dataset.copy_short_side is not None else []),
        "augmentation: " + ", ".join(f"{key} {value:g}" for key, value in augment.items() if value) + "; up to "
        f"{config.loader.max_broken:.0%} of the files may be broken",
        *_cautions(train, held_out, config, looks.seconds, covered),
    ]


def _cautions(
    train: Source, held_out: Source, config: ConfigDict, seconds: float | None, covered: float | None
) -> Iterator[str]:
    """Yield warnings: of classes without files, of a choice on the test split, of clips much longer than the files."""
    counts = [source.labels.sum(0) if source.multi_label else _counts(source) for source in (train, held_out)]
    untrained, unseen = (int((count == 0).sum()) for count in counts)
    if untrained or unseen:
        yield (
            f"classes without a training file: {untrained} of {len(train.classes)}, without a held-out file: {unseen}; "
            "the column split of a csv says which files are held out"
        )
    if config.data.eval.data.split == "test" and config.checkpoint.keep_best:
        yield "split: without a split val, the best checkpoint is chosen on test, which then is no test of it any more"
    if seconds and covered and (seconds > 2 * covered or covered > 2 * seconds):
        what = f"evaluation averages {config.eval.views} views"
        if config.eval.views == "1x1":
            what = "evaluation sees the middle (--config.eval.views=4x1 averages four parts)"
        if covered > seconds:
            what = "the last frame is repeated (a larger --config.input.fps avoids this)"
        yield f"time: a clip covers {covered:.1f} s, the median file lasts {seconds:.1f} s: {what}"


def _counts(source: Source) -> np.ndarray:
    return np.bincount(source.labels, minlength=len(source.classes))


def _bootstrap(config: ConfigDict, open_source: Callable[..., Source]):
    recipe, large = config.recipe, named_config(config.recipe.large)
    model = bootstrapped_config(named_config(recipe.small), large, widen=recipe.widen, position=recipe.position)
    train_last = model.depth if recipe.train_last is None else recipe.train_last
    if not 0 <= train_last <= model.depth:
        raise UserError(f"train_last must be 0 to {model.depth}, the blocks of {recipe.large}; found {train_last}")
    if config.train.gate and not train_last:
        raise UserError("gate=True needs a trained block: train_last of at least 1; found 0")
    rate, decay = kinetics_rates(large.width)
    values = _model_values(model) | {
        "input.fps": model.fps or KINETICS_FPS, "optimizer.learning_rate": rate,
        "optimizer.weight_decay": decay, "train.freeze_below": model.depth - train_last,
    }  # fmt: skip
    for name, dataset in config.data.eval.items():
        if dataset.split is None:
            values[f"data.eval.{name}.split"] = "val"
            try:
                if dataset.source.partition(":")[0] not in CLASSES:  # official lists have a split val
                    named = dataset.source, dataset.head, dataset.allow_overlap
                    values[f"data.eval.{name}.split"] = held_out_split(*named, open_source)
            except UserError:
                pass  # training will tell what is wrong

    def notes(config: ConfigDict) -> list[str]:
        sizes = " and ".join(f"{dataset.batch_size} {name}" for name, dataset in config.data.train.items())
        return [
            f"bootstrapping: 3D tubes of {recipe.small}, blocks of {recipe.large}; the last {train_last} of "
            f"{model.depth} blocks are trained, {config.train.steps} steps of {sizes}"
        ]

    return values, notes, None

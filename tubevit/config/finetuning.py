"""What fine-tuning derives from the data and the checkpoint: model, input, steps, warm-up, learning rate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from tubevit.config.bootstrapping import model_values
from tubevit.config.config import model_fields
from tubevit.data.decode import decode_image, decode_media
from tubevit.data.sources import Source, default_head, held_out_split
from tubevit.data.warp import frame_size
from tubevit.errors import DecodeError, UserError
from tubevit.models.variants import model_config
from tubevit.transfer.small_to_large import inflated_config
from tubevit.zoo.names import open_checkpoint

PROBED = 12  # files that are looked at
LONGEST_SPAN = 10.0  # seconds that a clip covers at most: Kinetics' clips are as long
SMALL = 96  # pixels of the short side up to which the models of the embedded data are taken


@dataclasses.dataclass(frozen=True)
class Probe:
    """What some files of a source are like.

    Attributes:
        short_side: median, in pixels.
        seconds: median length of a video; None for images.
        decoding: median time to decode one file, in seconds.
    """

    short_side: int
    seconds: float | None
    decoding: float


def probe(source: Source) -> Probe:
    """Look at some files, evenly spread over the source.

    Raises:
        UserError: none of them can be decoded.
    """
    sides, lengths, times, last = [], [], [], None
    for index in np.unique(np.linspace(0, len(source) - 1, PROBED).astype(int)):
        media = source.media(int(index))
        start = time.perf_counter()
        try:
            if source.modality == "image":
                frame = decode_image(media)
            else:
                decoded = decode_media(media, 16)
                frame = decoded.frames[0]
                lengths.append(decoded.seconds)
        except DecodeError as error:
            last = error
            continue
        times.append(time.perf_counter() - start)
        sides.append(min(frame_size(frame)))
    if not sides:
        raise UserError(f"none of {PROBED} files of {source.name} can be decoded: {last}")
    known = [length for length in lengths if length]
    return Probe(int(np.median(sides)), float(np.median(known)) if known else None, float(np.median(times)))


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """The data set of a fine-tuning run and what follows from it.

    Attributes:
        values: {key: value}, see `tubevit.recipes.finetune.finetune_config`.
        train, held_out: the source's training split and the split to evaluate on.
        looks: what the training files are like.
    """

    values: dict[str, object]
    train: Source
    held_out: Source
    looks: Probe

    def notes(self, config: ConfigDict) -> list[str]:
        """Describe the resolved configuration in lines for the user."""
        train, looks, dataset = self.train, self.looks, config.data.train.data
        split = config.data.eval.data.split
        model = model_config(**model_fields(config), num_classes=max(len(train.classes), 1))
        image = train.modality == "image"
        shape = (1 if image else model.frames, model.size, model.size)
        length = f", {looks.seconds:.1f} s" if looks.seconds else ""
        fps = "" if image or config.input.fps is None else f" at {config.input.fps:g} frames per second"
        augment = {key: dataset.augment[key] for key in ("random_crop", "area", "flip", "colour_jitter")}
        epochs = config.train.steps * dataset.batch_size / len(train)
        return [
            f"data: {len(train)} files to train, {len(self.held_out)} to evaluate (split {split}), "
            f"{len(train.classes)} classes; median short side {looks.short_side} pixels{length}",
            f"model: {config.model.name} from {config.init.checkpoint or 'scratch'}, "
            f"input {'x'.join(map(str, shape))}{fps}",
            f"training: {config.train.steps} steps of {dataset.batch_size} ({epochs:.0f} epochs), warm-up "
            f"{config.optimizer.warmup_steps}, learning rate {config.optimizer.learning_rate:g} "
            "(--config.KEY=VALUE changes any)",
            "augmentation: " + ", ".join(f"{key} {value:g}" for key, value in augment.items() if value) + "; up to "
            f"{config.loader.max_broken:.0%} of the files may be broken",
        ]


def finetuning(config: ConfigDict, open_source: Callable[..., Source]) -> Finetuning:
    """Derive the keys that the recipe `finetune` leaves open.

    Raises:
        UserError: the source has no split to train or evaluate on, none of its files can be decoded, or the checkpoint
            is not there.
    """
    recipe, data = config.recipe, config.data.train.data.source
    head = config.data.train.data.head or default_head(data, "data")
    train = open_source(data, "train", head)
    split = held_out_split(data, head, open_source)
    looks = probe(train)
    if recipe.checkpoint:
        stored = open_checkpoint(recipe.checkpoint).model
        scan = stored.scan
        if stored.is_plain_vit and train.modality == "video":
            stored = inflated_config(stored)
        values, fps = model_values(stored) | {"model.scan": scan}, stored.fps
    else:
        stored = model_config(recipe.model or ("tubevit_nano8" if looks.short_side <= SMALL else "tubevit_ti16"))
        values = {"model.name": stored.name, "input.frames": stored.frames, "input.size": stored.size}
        fps = None
    if looks.seconds is not None:
        values["input.fps"] = fps or round(stored.frames / min(looks.seconds, LONGEST_SPAN), 2)

    batch_size = 2 ** int(np.log2(min(32, len(train))))  # a power of two divides over the chips of a host
    epochs, fewest, most = (30, 5_000, 20_000) if recipe.checkpoint else (100, 20_000, 40_000)
    steps = int(np.clip(epochs * len(train), fewest, max(most, 3 * len(train)))) // batch_size
    rate = 1.2e-3 * 96 / stored.width * (1 / 3 if recipe.checkpoint else 1)
    values |= {
        "optimizer.learning_rate": float(f"{rate:.2g}"),
        "optimizer.warmup_steps": steps // 10,
        "train.steps": steps,
        "train.label_smoothing": 0.0 if train.multi_label else 0.1,
        "data.train.data.batch_size": batch_size,
        "data.train.data.augment.area": 0.5 if len(train) < 10_000 else 0.3,
        "data.eval.data.batch_size": batch_size,
        "data.eval.data.split": split,
        "eval.every": max(steps // 5, 1),
        "checkpoint.every": max(steps // 5, 1),
        "log.every": max(steps // 50, 1),
    }
    return Finetuning(values, train, open_source(data, split, head), looks)

"""A configuration for one's own data: steps, warm-up, learning rate, input and augmentation follow from the files."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from ml_collections import ConfigDict

from tubevit.config import dataset_config, default_config, model_fields, set_model
from tubevit.data.decode import decode_image, decode_media
from tubevit.data.sources import Source, open_source
from tubevit.data.warp import frame_size
from tubevit.errors import DecodeError, SplitError, UserError
from tubevit.models.flops import count_flops
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
        seconds: median length of a video, None of images.
        decoding: seconds that decoding one file took, median.
    """

    short_side: int
    seconds: float | None
    decoding: float


def probe(source: Source) -> Probe:
    """Looks at some files, evenly spread over the source.

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


def finetune_config(data: str, init: str | None = None, model: str | None = None, flip: bool = False):
    """A configuration that trains on `data` and evaluates on its split `val`, else `test`.

    | | from scratch | from a checkpoint |
    |---|---|---|
    | model, input size, frames | `tubevit_nano8` up to a short side of 96 pixels, else `tubevit_ti16` | its own |
    | frames per second | so that a clip covers the median video, at most 10 s | its own if it has one, else likewise |
    | samples seen | 100 epochs, at least 20,000 and at most 40,000 (or 3 epochs) | 30, 5,000, 20,000 (or 3) |
    | learning rate | 1.2e-3 at a width of 96, falling with the width | a third of it |

    A plain ViT gets 3D tubes where the data is videos, see `inflated_config`.

    Args:
        data: a source with a split `train`.
        init: what `load_model` takes; None begins from random parameters.
        model: architecture, instead of the one that follows from the size of the frames; not with `init`.
        flip: mirror half of the clips; only where the labels allow it.

    Returns:
        The configuration, and lines that say what was chosen, with epochs and the expected time.

    Raises:
        UserError: no such source or checkpoint, or the source has no split to train or evaluate on.
    """
    train = open_source(data, "train")
    split, held_out = _evaluation_split(data)
    looks = probe(train)
    config = default_config()
    if init:
        if model:
            raise UserError("model= goes without init=: the checkpoint has its own")
        stored = _use_checkpoint(config, init, train.modality == "video")
        fps = stored.fps
    else:
        config.model.name = model or ("tubevit_nano8" if looks.short_side <= SMALL else "tubevit_ti16")
        config.model.scan = False
        stored = model_config(config.model.name)
        fps = None
        config.input.update(frames=stored.frames, size=stored.size)
    if looks.seconds is not None:
        config.input.fps = fps or round(stored.frames / min(looks.seconds, LONGEST_SPAN), 2)

    batch_size = 2 ** int(np.log2(min(32, len(train))))  # a power of two divides over the chips of a host
    epochs, fewest, most = (30, 5_000, 20_000) if init else (100, 20_000, 40_000)
    steps = int(np.clip(epochs * len(train), fewest, max(most, 3 * len(train)))) // batch_size
    rate = 1.2e-3 * 96 / stored.width * (1 / 3 if init else 1)
    config.optimizer.update(
        name="adamw",
        learning_rate=float(f"{rate:.2g}"),
        warmup_steps=steps // 10,
        weight_decay=0.05,
        grad_clip_norm=1.0,
    )
    config.train.update(steps=steps, label_smoothing=0.0 if train.multi_label else 0.1)
    augment = {"random_crop": True, "area": 0.5 if len(train) < 10_000 else 0.3, "flip": flip, "colour_jitter": 0.2}
    config.data.train.data = dataset_config(source=data, batch_size=batch_size, augment=augment)
    config.data.eval.data = dataset_config(source=data, split=split, batch_size=batch_size)
    config.eval.every = config.checkpoint.every = max(steps // 5, 1)
    config.log.every = max(steps // 50, 1)
    config.loader.max_broken = 0.05
    return config, _summary(config, train, held_out, split, looks)


def _evaluation_split(data: str) -> tuple[str, Source]:
    for split in ("val", "test"):
        try:
            return split, open_source(data, split)
        except SplitError as error:
            last = error
    raise UserError(f"{data} has neither a split val nor a split test to evaluate on: {last}") from last


def _use_checkpoint(config: ConfigDict, init: str, video: bool):
    """Sets `init`, `model`, `input` to a checkpoint's (of a plain ViT what it becomes); returns the ModelConfig."""
    stored = open_checkpoint(init).model
    config.init.checkpoint = init
    config.model.scan = stored.scan
    if stored.is_plain_vit and video:
        stored = inflated_config(stored)
    set_model(config, stored)
    return stored


def _summary(config: ConfigDict, train: Source, held_out: Source, split: str, looks: Probe) -> list[str]:
    augment = {key: config.data.train.data.augment[key] for key in ("random_crop", "area", "flip", "colour_jitter")}
    model = model_config(**model_fields(config), num_classes=max(len(train.classes), 1))
    image = train.modality == "image"
    batch_size, steps = config.data.train.data.batch_size, config.train.steps
    length = f", {looks.seconds:.1f} s" if looks.seconds else ""
    shape = (1 if image else model.frames, model.size, model.size)
    fps = "" if image or config.input.fps is None else f" at {config.input.fps:g} frames per second"
    computing = 3 * batch_size * count_flops(model, shape).total / _flops_per_second()
    loading = batch_size * looks.decoding / config.loader.threads
    minutes = steps * max(computing, loading) / 60
    return [
        f"data: {len(train)} files to train, {len(held_out)} to evaluate (split {split}), "
        f"{len(train.classes)} classes; median short side {looks.short_side} pixels{length}",
        f"model: {config.model.name} from {config.init.checkpoint or 'scratch'}, "
        f"input {'x'.join(map(str, shape))}{fps}",
        f"training: {steps} steps of {batch_size} ({steps * batch_size / len(train):.0f} epochs), warm-up "
        f"{config.optimizer.warmup_steps}, learning rate {config.optimizer.learning_rate:g} "
        "(--config.KEY=VALUE changes any)",
        "augmentation: " + ", ".join(f"{key} {value:g}" for key, value in augment.items() if value) + f"; up to "
        f"{config.loader.max_broken:.0%} of the files may be broken",
        f"expected time: about {max(minutes, 1):.0f} minutes, without evaluation "
        f"(a step: {computing:.2f} s computing, {loading:.2f} s loading)",
    ]


def _flops_per_second() -> float:
    """Rate of a large matrix product on this machine; a training step reaches about half of it."""
    import jax
    import jax.numpy as jnp

    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 0.5 * 2 * size**3 / min(times)

"""Hyper-parameters of the paper (Table 10) as configurations; the experiments add data and what they change."""

from __future__ import annotations

from ml_collections import ConfigDict

from tubevit.config import dataset_config, default_config, set_model
from tubevit.data.sources import open_source
from tubevit.errors import SplitError, UserError, unknown
from tubevit.transfer.small_to_large import bootstrapped_config
from tubevit.zoo.names import named_config

_KINETICS = {"batch_size": 256, "learning_rate": 5e-5, "frames": 64, "fps": 15.0}
# What differs between the columns of Table 10; `dropout` to `label_smoothing` are 0 where they are not named.
TABLE_10 = {
    "k400": _KINETICS,
    "k600": _KINETICS,
    "k700": _KINETICS,
    "charades": {
        "batch_size": 64, "learning_rate": 1e-3, "frames": 128, "fps": 6.0, "dropout": 0.2, "label_smoothing": 0.1,
    },
    "ssv2": {
        "batch_size": 256, "learning_rate": 2e-5, "frames": 32, "fps": 24.0, "dropout": 0.3, "label_smoothing": 0.3,
        "mixup": 0.3,
    },
}  # fmt: skip
_LARGE = 1024  # width of L
RANDAUGMENT = {"rand_layers": 2, "rand_magnitude": 10.0}  # all columns
# "Random spatial and temporal cropping" (appendix A) without figures: the side of the square is 1 / 1.4 to 1 of the
# short side, as in cropping 224 pixels from a short side of 224 to 320.
VIDEO_AUGMENT = {"random_crop": True, "scale": 1.4, **RANDAUGMENT}
# The paper says nothing of images: the usual random resized crop and flip of ImageNet training.
IMAGE_AUGMENT = {"random_crop": True, "area": 0.08, "flip": True, **RANDAUGMENT}


def paper_config(column: str, model: str) -> ConfigDict:
    """A configuration with the hyper-parameters of a column of Table 10; `data` is left empty.

    Large and huge models have weight decay 1e-5 instead of 1e-3, and on Kinetics a learning rate of 1e-5.

    Args:
        column: a key of `TABLE_10`.
        model: architecture; or a checkpoint, for `set_model` to replace.

    Raises:
        UserError: no such column.
    """
    if column not in TABLE_10:
        raise unknown("column of Table 10", column, TABLE_10)
    values = TABLE_10[column]
    large = named_config(model).width >= _LARGE
    config = default_config()
    config.model.update(name=model, dropout=values.get("dropout", 0.0))
    config.input.update(frames=values["frames"], fps=values["fps"])
    config.optimizer.learning_rate = 1e-5 if large and values is _KINETICS else values["learning_rate"]
    config.optimizer.weight_decay = 1e-5 if large else 1e-3
    config.train.update(mixup=values.get("mixup", 0.0), label_smoothing=values.get("label_smoothing", 0.0))
    config.eval.views = "4x3"
    config.precision = "bfloat16"
    config.loader.threads = 16
    return config


def add_videos(config: ConfigDict, name: str, source: str, column: str) -> None:
    """Adds a video data set to `data.train` and its split `val` to `data.eval`."""
    batch_size = TABLE_10[column]["batch_size"]
    config.data.train[name] = dataset_config(source=source, batch_size=batch_size, augment=VIDEO_AUGMENT)
    config.data.eval[name] = dataset_config(source=source, split="val", batch_size=16)


def add_images(config: ConfigDict, source: str, batch_size: int = 256) -> None:
    """Adds ImageNet-1k; the paper trains on it jointly and does not say in which proportion: 1:1 here."""
    config.data.train.imagenet = dataset_config(source=source, batch_size=batch_size, augment=IMAGE_AUGMENT)
    config.data.eval.imagenet = dataset_config(source=source, split="val", batch_size=64)


def kinetics_and_imagenet(column: str, model: str, videos: str, images: str) -> ConfigDict:
    """Joint training on a Kinetics and on ImageNet-1k (section 3.5 and appendix A)."""
    config = paper_config(column, model)
    add_videos(config, column, videos, column)
    add_images(config, images)
    return config


def bootstrap(
    small: str,
    large: str,
    *,
    train_last: int | None,
    gate: bool,
    videos: str,
    steps: int,
    batch_size: int = 256,
    widen: str = "concatenate",
    position: str = "learned_2d",
) -> ConfigDict:
    """A large video model from the tubes of a small one and a large image ViT (section 3.6).

    The input is the small model's (at 15 frames per second where it does not say); hyper-parameters are those of
    Kinetics-600 for the large width.

    Args:
        small: checkpoint of a tube model.
        large: checkpoint of a plain ViT.
        train_last: blocks that are trained, the last ones; 0 trains pooling and head only, None everything.
        gate: whether the first trained block has the gate of equation 8.
        videos: source to train and, split `val`, else `test`, to evaluate on.
        steps, batch_size: of training.
        widen, position: see `bootstrapped_config`.

    Raises:
        UserError: the models do not fit each other, or have fewer blocks than are to be trained.
    """
    model = bootstrapped_config(named_config(small), named_config(large), widen=widen, position=position)
    train_last = model.depth if train_last is None else train_last
    if not 0 <= train_last <= model.depth:
        raise UserError(f"train_last must be 0 to {model.depth}, the blocks of {large}; found {train_last}")
    if gate and not train_last:
        raise UserError("gate=True needs a trained block: train_last of at least 1; found 0")
    config = paper_config("k600", large)
    fps = config.input.fps
    set_model(config, model)
    config.input.fps = model.fps or fps
    config.init.update(checkpoint=large, tubes=small)
    config.train.update(steps=steps, freeze_below=model.depth - train_last, gate=gate)
    add_videos(config, "videos", videos, "k600")
    config.data.train.videos.batch_size = batch_size
    config.data.eval.videos.split = _held_out_split(videos)
    return config


def _held_out_split(source: str) -> str:
    """`val`, or `test` where the files are at hand and have no `val`; of official lists `val` without a look."""
    if ":" in source:
        return "val"
    for split in ("val", "test"):
        try:
            open_source(source, split)
            return split
        except SplitError:
            continue
        except UserError:  # training will say what is wrong
            break
    return "val"

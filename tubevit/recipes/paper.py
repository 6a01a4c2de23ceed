"""Hyper-parameters of the paper (Table 10) as configurations; the experiments add data and what they change."""

from ml_collections import ConfigDict

from tubevit.config.config import dataset_config, default_config, request_recipe, set_value
from tubevit.config.derive import KINETICS_FPS, kinetics_rates
from tubevit.config.keys import defining_keys
from tubevit.errors import unknown
from tubevit.models.variants import model_config

_KINETICS = {"batch_size": 256, "frames": 64, "fps": KINETICS_FPS}  # the learning rate: see `kinetics_rates`
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
LARGE = 1024  # width from which on the loop over layers is not unrolled
RANDAUGMENT = {"rand_layers": 2, "rand_magnitude": 10.0}  # all columns
# "Random spatial and temporal cropping" (appendix A) without figures: the side of the square is 1 / 1.4 to 1 of the
# short side, as in cropping 224 pixels from a short side of 224 to 320.
VIDEO_AUGMENT = {"random_crop": True, "scale": 1.4, **RANDAUGMENT}
# The paper says nothing of images: the usual random resized crop and flip of ImageNet training.
IMAGE_AUGMENT = {"random_crop": True, "area": 0.08, "flip": True, **RANDAUGMENT}


def paper_config(column: str, model: str | None) -> ConfigDict:
    """Return a configuration with the hyper-parameters of a column of Table 10; `data` is left empty.

    Large and huge models have weight decay 1e-5 instead of 1e-3, and on Kinetics a learning rate of 1e-5.

    Args:
        column: a key of `TABLE_10`.
        model: the architecture. None leaves out what follows from its width.

    Raises:
        UserError: there is no such column or architecture.
    """
    if column not in TABLE_10:
        raise unknown("column of Table 10", column, TABLE_10)
    values = TABLE_10[column]
    rate, decay = kinetics_rates(model_config(model).width) if model else (None, None)
    config = default_config()
    config.model.update(name=model, dropout=values.get("dropout", 0.0), remat="names")
    if model:
        # Without the loop no activation is stacked, and the exchanges of a layer overlap with other layers. L and H
        # keep it, because they would take many minutes to compile.
        config.model.scan = model_config(model).width >= LARGE
    config.input.update(frames=values["frames"], fps=values["fps"])
    config.optimizer.update(learning_rate=values.get("learning_rate", rate), weight_decay=decay)
    config.train.update(mixup=values.get("mixup", 0.0), label_smoothing=values.get("label_smoothing", 0.0))
    config.eval.views = "4x3"
    config.precision = "bfloat16"
    config.loader.threads = 16
    return config


def add_videos(config: ConfigDict, name: str, source: str, column: str) -> None:
    """Add a video data set to `data.train` and its split `val` to `data.eval`."""
    batch_size = TABLE_10[column]["batch_size"]
    config.data.train[name] = dataset_config(source=source, batch_size=batch_size, augment=VIDEO_AUGMENT)
    config.data.eval[name] = dataset_config(source=source, split="val", batch_size=16)


def add_images(config: ConfigDict, source: str, batch_size: int = 256) -> None:
    """Add ImageNet-1k. The paper trains on it jointly but does not give the proportion; here it is 1:1."""
    config.data.train.imagenet = dataset_config(source=source, batch_size=batch_size, augment=IMAGE_AUGMENT)
    config.data.eval.imagenet = dataset_config(source=source, split="val", batch_size=64)


def kinetics_and_imagenet(column: str, model: str, videos: str, images: str) -> ConfigDict:
    """Joint training on a Kinetics and on ImageNet-1k (section 3.5 and appendix A)."""
    config = paper_config(column, model)
    add_videos(config, column, videos, column)
    add_images(config, images)
    return config


def bootstrap_config(small: str, large: str, videos: str, **recipe) -> ConfigDict:
    """Return a large video model from the tubes of a small one and a large image ViT (section 3.6).

    `resolve` derives the model. Its input is the small model's (at 15 frames per second if that has no frame rate);
    hyper-parameters are those of Kinetics-600 for the large width. The videos are trained on for 50,000 steps and their
    split `val`, else `test`, is for evaluation.

    Args:
        small: a tube model, architecture or checkpoint.
        large: a plain ViT, architecture or checkpoint.
        videos: a source.
        **recipe: `train_last`, the number of blocks to train, the last ones: 0 trains pooling and head only, None
            everything. `widen` and `position`, see `bootstrapped_config`.
    """
    config = paper_config("k600", None)
    request_recipe(config, "bootstrap", small=small, large=large, **recipe)
    for path in defining_keys():
        set_value(config, path, None)
    config.init.update(checkpoint=large, tubes=small)
    config.train.update(steps=50_000, freeze_below=None)
    add_videos(config, "videos", videos, "k600")
    config.data.eval.videos.split = None
    return config

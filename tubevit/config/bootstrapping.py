"""What bootstrapping derives from the small model and the large ViT: model, input, rates, frozen blocks."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from tubevit.config.keys import defining_keys
from tubevit.data.sources import Source, held_out_split
from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.transfer.small_to_large import bootstrapped_config
from tubevit.zoo.names import named_config

_LARGE = 1024  # width of L
FPS = 15.0  # of Kinetics in Table 10


def kinetics_rates(width: int) -> tuple[float, float]:
    """Return learning rate and weight decay on Kinetics for a model of a width (Table 10)."""
    return (1e-5, 1e-5) if width >= _LARGE else (5e-5, 1e-3)


def model_values(model: ModelConfig) -> dict[str, object]:
    """Return the keys of `model` and `input` that define a model."""
    values = {path: getattr(model, path.partition(".")[2]) for path in defining_keys()}
    return values | {"model.tubes": str(model.tubes)}


def bootstrapping(config: ConfigDict, open_source: Callable[..., Source]) -> dict[str, object]:
    """Derive the keys that the recipe `bootstrap` leaves open.

    Raises:
        UserError: the models do not fit each other, or have fewer blocks than are to be trained.
    """
    recipe = config.recipe
    large = named_config(recipe.large)
    model = bootstrapped_config(named_config(recipe.small), large, widen=recipe.widen, position=recipe.position)
    train_last = model.depth if recipe.train_last is None else recipe.train_last
    if not 0 <= train_last <= model.depth:
        raise UserError(f"train_last must be 0 to {model.depth}, the blocks of {recipe.large}; found {train_last}")
    if config.train.gate and not train_last:
        raise UserError("gate=True needs a trained block: train_last of at least 1; found 0")
    rate, decay = kinetics_rates(large.width)
    splits = {
        f"data.eval.{name}.split": _held_out_split(dataset.source, open_source)
        for name, dataset in config.data.eval.items()
        if dataset.split is None
    }
    return (
        splits
        | model_values(model)
        | {
            "input.fps": model.fps or FPS,
            "optimizer.learning_rate": rate,
            "optimizer.weight_decay": decay,
            "train.freeze_below": model.depth - train_last,
        }
    )


def bootstrapping_notes(config: ConfigDict, recipe: ConfigDict) -> list[str]:
    """Describe the resolved configuration in a line for the user."""
    blocks = "all" if recipe.train_last is None else f"the last {recipe.train_last}"
    sizes = ", ".join(str(dataset.batch_size) for dataset in config.data.train.values())
    return [
        f"bootstrapping: 3D tubes of {recipe.small}, blocks of {recipe.large}; {blocks} blocks are trained, "
        f"{config.train.steps} steps of {sizes} clips"
    ]


def _held_out_split(source: str, open_source: Callable[..., Source]) -> str:
    """`val`, or `test` where the files are at hand and have no `val`; official lists have a `val`."""
    try:
        return "val" if ":" in source else held_out_split(source, None, open_source)
    except UserError:  # training will tell what is wrong
        return "val"

"""Metadata of a checkpoint: the configuration of the model, and the versions of the packages that wrote it."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping

import tubevit
from tubevit.checkpoint.renamed import with_current_keys
from tubevit.data.labels import label_hash
from tubevit.errors import UserError
from tubevit.models.config import Head, Lora, ModelConfig
from tubevit.tubes import TubeSet


def model_metadata(config: ModelConfig) -> dict:
    """Return the configuration of a model as JSON values; heads with labels include their `label_hash`."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    heads = {name: dataclasses.asdict(head) | _label_hash(head.labels) for name, head in config.heads}
    lora = None if config.lora is None else dataclasses.asdict(config.lora)
    budget = None if config.budget is None else str(config.budget)
    return values | {"tubes": str(config.tubes), "heads": heads, "lora": lora, "budget": budget}


def _label_hash(labels) -> dict[str, str]:
    return {"label_hash": label_hash(labels)} if labels else {}


def config_from_metadata(values: Mapping, source: str = "the model") -> ModelConfig:
    """Invert `model_metadata`.

    Args:
        values: what `model_metadata` returned, in this version or an earlier one.
        source: what was read and which version wrote it, for the error.

    Raises UserError if a later version wrote fields that this one lacks, or the labels of a head no longer match their
    hash.
    """
    values = with_current_keys({"model": values})["model"]
    check_known(ModelConfig, values, source)
    heads = []
    for name, stored in values["heads"].items():
        fields = {key: value for key, value in stored.items() if key != "label_hash"}
        check_known(Head, fields, source)
        expected, found = stored.get("label_hash"), _label_hash(fields["labels"]).get("label_hash")
        if expected not in (None, found):
            raise UserError(
                f"the labels of head {name!r} were changed: expected those of label_hash {expected}, found {found}"
            )
        heads.append((name, Head(**fields)))
    tubes = TubeSet.from_text(values["tubes"], values["padding"])
    lora = None
    if values.get("lora"):
        check_known(Lora, values["lora"], source)
        lora = Lora(**values["lora"])
    return ModelConfig(**{**values, "tubes": tubes, "heads": tuple(heads), "lora": lora})


def check_known(kind: type, values: Mapping, source: str) -> None:
    """Raise UserError if stored values have fields that a dataclass does not have; `source` begins the message."""
    known = {field.name for field in dataclasses.fields(kind)}
    new = [f"{kind.__name__}.{name}" for name in values if name not in known]
    if new:
        raise UserError(f"{source} has {', '.join(new)}, unknown to tubevit {tubevit.__version__}: upgrade tubevit")


def versions() -> dict[str, str]:
    """Return the versions of the packages that a checkpoint is written with."""
    packages = ("jax", "flax", "orbax-checkpoint", "numpy")
    return {"tubevit": tubevit.__version__} | {name: importlib.metadata.version(name) for name in packages}

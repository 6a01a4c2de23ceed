"""The figures by which models are compared."""

import math

import jax

from tubevit.models.config import ModelConfig
from tubevit.models.flops import activation_bytes, count, count_flops, num_tokens, training_flops
from tubevit.models.freeze import split_frozen
from tubevit.models.lora import training_shapes
from tubevit.tubes import Triple, TubeSet


def describe(name: str, config: ModelConfig) -> dict:
    """Describe a model by its tokens, parameters, FLOPs and memory for one view of its input, as JSON values.

    `state_bytes` counts parameters, gradients and both moments of Adam in float32; `training_flops` a training step.
    """
    shape, tubes = config.shape, config.tubes
    by_clip = tubes.depends_on_clip(shape)  # then so are the pixels that are read
    params = training_shapes(config)
    trained = count(jax.eval_shape(lambda params: split_frozen(params, config)[0], params))
    per_tube = [
        {
            "tube": str(tube),
            "grid": list(tube.grid(shape, tubes.padding)),
            "tokens": kept,
            "pixels_read": None if by_clip else tubes.pixels_read(shape, tube),
        }
        for tube, kept in zip(tubes.tubes, tubes.kept(shape))
    ]
    head = next((name for name, head in config.heads if config.frames == 1 or head.modality != "image"), None)
    flops = count_flops(config, shape, head)
    return {
        "name": name, "architecture": config.name, "input": "x".join(map(str, shape)), "tubes": per_tube,
        "budget": None if config.budget is None else str(config.budget),
        "tokens": num_tokens(config, shape), "pixels_read": None if by_clip else tubes.pixels_read(shape),
        "values_read": tubes.values_read(shape), "clip_values": 3 * math.prod(shape),
        "bytes": sent_bytes(tubes, shape), "parameters": count(params),
        "trainable_share": trained / count(params), "state_bytes": 4 * (count(params) + 3 * trained),
        "flops": flops.total, "macs": flops.macs, "training_flops": training_flops(config, shape, head),
        "activation_bytes": activation_bytes(config, shape),
    }  # fmt: skip


def sent_bytes(tubes: TubeSet, shape: Triple) -> dict[str, dict[str, int]]:
    """Count the bytes of a uint8 clip (T, H, W) and of an image of its size on both input paths.

    Returns:
        {"clip" (if T > 1), "image" (if a tube takes images): {"dense", "tubes"}}.
    """
    sets = {"clip": (tubes, tuple(shape))} if shape[0] > 1 else {}
    if any(tube.is_2d for tube in tubes.tubes):
        sets["image"] = tubes.for_images(), (1, *shape[1:])

    def windows(read: TubeSet, of: Triple) -> int:  # where each clip has its own tokens, with their numbers as int32
        return read.values_read(of) + (4 * read.num_tokens(of) if read.depends_on_clip(of) else 0)

    return {kind: {"dense": 3 * math.prod(of), "tubes": windows(read, of)} for kind, (read, of) in sets.items()}

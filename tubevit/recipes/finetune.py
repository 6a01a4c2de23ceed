"""A configuration for one's own data: steps, warm-up, learning rate, input and augmentation follow from the files."""

import os
import time

from ml_collections import ConfigDict

from tubevit.config.config import dataset_config, default_config, request_recipe, set_value
from tubevit.config.derive import about_minutes
from tubevit.config.keys import defining_keys
from tubevit.config.resolve import Resolved
from tubevit.errors import UserError
from tubevit.models.flops import count_flops

CLOSEST = "closest"
_COPIES_DECODE = 0.1  # of the time of the files; 0.07 was measured for 426x240 pixels


def finetune_config(
    data: str,
    init: str | None = CLOSEST,
    model: str | None = None,
    flip: bool = False,
    tubes: str | None = None,
    adapter: str | None = None,
) -> ConfigDict:
    """Return a configuration that trains on `data` and evaluates on its split `val`, else `test`.

    `resolve` fills in what follows from the data and the checkpoint:

    | | from scratch | from a checkpoint |
    |---|---|---|
    | model, input size, frames | `tubevit_nano8` or `tubevit_ti16` | its own |
    | frame rate | so that a clip covers the median video, at most 10 s | its own if it has one, else likewise |
    | schedule | long | long up to a width of 96, else short |
    | optimiser | Muon up to a width of 96, else AdamW | likewise |
    | learning rate | 1e-2 with Muon, 1.2e-3 with AdamW, times 96 / width | a third of it |
    | weight decay | 0.2 with Muon, 0.05 with AdamW, none with Adam | likewise |

    With an adapter, the optimiser is AdamW, and the learning rate ten times that of a checkpoint.

    `tubevit_ti16` is for 5,000 files or more whose median short side is above 96 pixels.

    The long schedule is 100 epochs, but at least 20,000 and at most 40,000 samples. The short one is 30 epochs, between
    5,000 and 20,000 samples. If the largest number is less than 3 epochs, it is 3 epochs.

    If the files are at least twice as large as needed, training reads small copies of them, see `small_copy`, unless
    there are more than 20,000. The average of the parameters (`ema_decay`) is evaluated and saved, and the checkpoint
    with the best held-out top-1 (or mAP) is kept beside the last one. Up to 5 % of the files may be broken, or one
    if that is at most a tenth. `train.steps` and the batch size that the user sets replace those of the schedule.
    Evaluations and checkpoints follow from them, and the learning rate stays. Fewer steps also shorten warm-up and
    averaging; more steps leave them as they are.

    A plain ViT gets 3D tubes if the data is videos, see `inflated_config`. With `tubes`, a dense video model becomes a
    sparse one: kernels and positions of other tubes come from those of its only tube, see `sparse_config`.

    Args:
        data: a source with a split `train`.
        init: a checkpoint as `load_model` takes it, None for random parameters, or `closest`: the released checkpoint
            whose input is closest to `input.size`, by default to the short side of the frames, if there are fewer than
            5,000 files, no `model` is given and no key that defines the architecture is set; otherwise random
            parameters.
        model: the architecture, instead of the one that follows from the size of the frames; not with `init`.
        flip: mirror half of the clips; only where the labels allow it.
        tubes: a preset or the text of other tubes for a dense video model; only with `init`.
        adapter: `lora` trains low-rank adapters in place of the checkpoint's own parameters, see `tubevit.models.lora`.

    Raises:
        UserError: `tubes` is given without `init`. `resolve` refuses `init` together with `model`.
    """
    closest = init in (CLOSEST, "") and not model
    init = None if init in (CLOSEST, "") else init
    if tubes and not init:
        raise UserError("tubes= goes with init=, a dense video model; --config.model.tubes=... sets those of a new one")
    config = default_config()
    request_recipe(config, "finetune", closest=closest, model=model, tubes=tubes)
    config.init.update(checkpoint=init, tubes="dense" if tubes else "same")
    for path in [*defining_keys(), "model.scan"]:
        set_value(config, path, None)
    for key in ("name", "learning_rate", "warmup_steps", "weight_decay", "b2", "ema_decay"):
        config.optimizer[key] = None
    config.optimizer.grad_clip_norm = 1.0
    config.train.update(steps=None, label_smoothing=None, adapter=adapter or "none")
    augment = {"random_crop": True, "area": None, "flip": flip, "colour_jitter": 0.2}
    config.data.train.data = dataset_config(source=data, batch_size=None, augment=augment)
    config.data.eval.data = dataset_config(source=data, split=None, batch_size=None)
    config.eval.every = config.checkpoint.every = config.log.every = None
    config.loader.max_broken = None
    return config


def expected_time(resolved: Resolved) -> str:
    """Estimate how long a fine-tuning run takes on this machine, in a line for the user; it times a matrix product."""
    import jax

    config, dataset = resolved.config, resolved.config.data.train.data
    head = dict(resolved.model.heads)[dataset.head]
    shape = (1 if head.modality == "image" else resolved.model.frames, *resolved.model.shape[1:])
    computing = 3 * dataset.batch_size * count_flops(resolved.model, shape, dataset.head).total / _flops_per_second()
    of_copies = 1 if dataset.copy_short_side is None else _COPIES_DECODE
    threads = min(config.loader.threads, os.cpu_count() or 1)
    loading = dataset.batch_size * resolved.decoding * of_copies / threads
    # An accelerator computes while the host loads; a CPU does both.
    step = computing + loading if jax.default_backend() == "cpu" else max(computing, loading)
    return (
        f"expected time: {about_minutes(config.train.steps * step)}, without evaluation "
        f"(a step: {computing:.2f} s computing, {loading:.2f} s loading)"
    )


def _flops_per_second() -> float:
    """Return half the rate of a large matrix product on this machine, which a training step about reaches."""
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

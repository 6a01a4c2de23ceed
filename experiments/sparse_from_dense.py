"""Sparse tubes from a dense video model on the embedded data: the dense model, and the fine-tuning of what comes of it.

    tubevit train --config sparse_from_dense --workdir runs/dense
    tubevit train --config sparse_from_dense:init=runs/dense,tubes=4x8x8/4x16x16,steps=200 --workdir runs/sparse

Without `init` this trains a ViViT of all 256 tubelets of 4x8x8 to tell the direction of motion. With `init` and `tubes`
it fine-tunes the model of other tubes whose kernels and positions come from the dense one (`init.tubes=dense`). `clips`
takes another source, and `split` another split to evaluate on: the settings were chosen on 600 of the training clips.

Hardware: 2 CPU cores. Time: 10 minutes for the dense model; `python benchmarks/sparse_from_dense.py` runs everything,
with 3 seeds.
Expected: see docs/sparse_from_dense.md.
"""

from tubevit.config import dataset_config, default_config


def get_config(
    init: str = "",
    tubes: str = "4x8x8/4x8x8",
    seed: int = 0,
    steps: int = 800,
    clips: str = "moving_digits",
    split: str = "test",
):
    config = default_config()
    config.seed = seed
    config.model.update(name="vivit_nano8", tubes=tubes)
    config.model.scan = False  # three blocks: unrolled they train faster on CPU
    config.input.fps = 8.0
    if init:
        config.init.update(checkpoint=init, tubes="dense")
    config.data.train.moving_digits = dataset_config(
        source=clips, head="motion", batch_size=32, augment={"random_crop": True, "scale": 1.1}
    )
    config.data.eval.moving_digits = dataset_config(source=clips, split=split, head="motion", batch_size=50)
    config.optimizer.update(
        name="adam", learning_rate=6e-4 if init else 1.2e-3, warmup_steps=20 if init else 100, weight_decay=0.0,
        grad_clip_norm=1.0,
    )  # fmt: skip
    config.optimizer.b2 = 0.98
    config.train.steps = steps
    config.eval.every = 50 if init else 200
    config.checkpoint.every = steps
    config.loader.threads = 2
    config.log.every = 20
    return config

"""Section 3.6 on the embedded data: a small tube model and a larger image ViT become a larger video model.

    tubevit train --config digits_bootstrap:stage=small --workdir runs/digits_small
    tubevit train --config digits_bootstrap:stage=vit --workdir runs/digits_vit
    tubevit train --config digits_bootstrap:stage=gate,small=runs/digits_small,large=runs/digits_vit --workdir runs/gate

| stage | |
|---|---|
| small | tubevit_nano8 (96 wide, 3 blocks), jointly on moving digits (digit x motion, 80 classes) and still digits |
| vit | a plain ViT 192 wide, 6 blocks, on the still digits only |
| gate, last, last_fc, full | from both, trained on moving digits: last 2 blocks and gate, without, head only, all |
| scratch | the larger tube model from random parameters, on the same batches |

Hardware: 2 CPU cores. Time: 2 to 5 minutes a stage; `python benchmarks/digits_bootstrap.py` runs all, for 3 seeds.
Expected: docs/bootstrapping.md.
"""

from tubevit.config import dataset_config, default_config
from tubevit.errors import unknown
from tubevit.recipes import bootstrap

TRAINED = {"gate": 2, "last": 2, "last_fc": 0, "full": 6}
STAGES = ("small", "vit", *TRAINED, "scratch")


def get_config(stage: str = "small", small: str = "tubevit_nano8", large: str = "vit_ti8", seed: int = 0):
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    if stage in TRAINED:
        config = bootstrap(
            small, large, train_last=TRAINED[stage], gate=stage == "gate", videos="moving_digits", steps=300
        )
        config.data.train, config.data.eval = {}, {}
        config.precision = "float32"
    else:
        config = default_config()
        config.model.name = {"small": "tubevit_nano8", "vit": "vit_ti8", "scratch": "tubevit_ti8"}[stage]
        if stage != "small":
            config.model.depth = 6
    config.seed = seed
    config.model.scan = False  # few blocks: unrolled they train faster on CPU
    config.input.fps = 8.0
    if stage != "vit":
        crops = {"random_crop": True, "scale": 1.1}
        videos = dict(source="moving_digits", head="digit_motion")
        config.data.train.moving_digits = dataset_config(**videos, batch_size=32, augment=crops)
        config.data.eval.moving_digits = dataset_config(**videos, split="test", batch_size=50)
    if stage in ("small", "vit"):
        crops = {"random_crop": True, "scale": 1.3}
        images = dict(source="still_digits", head="digit")
        config.data.train.still_digits = dataset_config(**images, batch_size=32, augment=crops)
        config.data.eval.still_digits = dataset_config(**images, split="test", batch_size=50)
    steps = 600 if stage in ("small", "vit") else 300
    rate = 1.2e-3 if stage == "small" else 6e-4
    config.optimizer.update(name="adam", learning_rate=rate, warmup_steps=steps // 10, weight_decay=0.0, clip_norm=1.0)
    config.optimizer.b2 = 0.98
    config.train.steps = steps
    config.eval.update(every=steps, views="1x1")
    config.checkpoint.every = steps
    config.loader.threads = 1
    config.log.every = 20
    return config

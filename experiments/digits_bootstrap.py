"""Section 3.6 on the embedded data: the quickstart's model and a larger image ViT become a larger video model.

    tubevit train --config digits_bootstrap:stage=vit --workdir runs/digits_vit
    tubevit train --config digits_bootstrap:stage=gate,small=runs/quickstart,large=runs/digits_vit --workdir runs/gate

The quickstart's model (width 96, 3 blocks) has learned motion from clips and digits from images, jointly. The ViT
(width 192, 6 blocks) has only seen still digits. The model that they form learns digit x motion (80 classes) from
clips:

| stage | what is trained |
|---|---|
| vit | the image ViT |
| gate | bootstrapped: the last 2 blocks and the gate |
| last | bootstrapped: the last 2 blocks |
| last_fc | bootstrapped: pooling and head |
| full | bootstrapped: everything |
| scratch | the larger tube model from random parameters, on the same batches |

`tubevit_ti8@moving_digits_bootstrap` was trained with
`stage=gate,steps=2000,small=tubevit_nano8@moving_digits,large=runs/digits_vit`.

Hardware: 2 CPU cores. Time: 2 to 6 minutes per stage; `python benchmarks/digits_bootstrap.py` runs all of them, with 3
seeds.
Expected: see docs/bootstrapping.md.
"""

from tubevit.config import dataset_config, default_config
from tubevit.errors import unknown
from tubevit.recipes.paper import bootstrap_config

DEPTH = 6
TRAINED = {"gate": 2, "last": 2, "last_fc": 0, "full": DEPTH}
STAGES = ("vit", *TRAINED, "scratch")


def get_config(
    stage: str = "gate", small: str = "tubevit_nano8", large: str = "vit_ti8", seed: int = 0, steps: int | None = None
):
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    if steps is None:
        steps = 600 if stage == "vit" else 300
    if stage in TRAINED:
        config = bootstrap_config(small, large, "moving_digits", train_last=TRAINED[stage])
        config.train.gate = stage == "gate"
        config.data.train, config.data.eval, config.precision = {}, {}, "float32"
    else:
        config = default_config()
        config.model.name = "vit_ti8" if stage == "vit" else "tubevit_ti8"
        config.model.depth = DEPTH
    config.seed = seed
    config.model.update(
        scan=False, remat="none"
    )  # few blocks on CPU: memory is not short, and unrolled they are faster
    config.input.fps = 8.0
    if stage == "vit":
        name, data, scale = "still_digits", dict(source="still_digits", head="digit"), 1.3
    else:
        name, data, scale = "moving_digits", dict(source="moving_digits", head="digit_motion"), 1.1
    crops = {"random_crop": True, "scale": scale}
    config.data.train[name] = dataset_config(**data, batch_size=32, augment=crops)
    config.data.eval[name] = dataset_config(**data, split="test", batch_size=50)
    config.optimizer.update(
        name="adam", learning_rate=6e-4, warmup_steps=steps // 10, weight_decay=0.0, grad_clip_norm=1.0
    )
    config.optimizer.b2 = 0.98
    config.train.steps = steps
    config.eval.update(every=steps if stage == "vit" else max(100, steps // 10), views="1x1")
    config.checkpoint.every = steps
    config.loader.threads = 1
    config.log.every = 20
    return config

"""The claim behind TubeViT, trained on the embedded data: sparse tubes and joint training against dense video ViTs.

    tubevit train --config seed_claim:variant=vit --workdir runs/vit
    tubevit train --config seed_claim:variant=tubevit,init=runs/vit --workdir runs/tubevit
    tubevit train --config seed_claim:variant=divided,init=runs/vit --workdir runs/divided

All models have the same width, depth and heads, and learn the motion of the digits (8 classes) on the same schedule.

| variant | model | tokens of a clip | trained on |
|---|---|---|---|
| vit | image ViT | | still digits |
| tubevit | sparse tubes | 176 | clips, and still digits in the same steps |
| joint | all tubelets attend to each other (ViViT, model 1) | 257 | clips |
| divided | attention over time, then over space (TimeSformer) | 257 | clips |
| factorised | an encoder over space, then one over time (ViViT, model 2) | 257 | clips |

With `init`, the checkpoint of an image ViT, the blocks and kernels start from its parameters. Layers over time that it
does not have are initialised at random.

Hardware: 2 CPU cores. Time: 1 to 2 minutes for each variant; `python benchmarks/seed_claim.py` runs all of them, at
equal FLOPs and at equal batch sizes, with 3 seeds.
Expected: see docs/seed_claim.md.
"""

from tubevit.config import dataset_config, default_config
from tubevit.errors import unknown

MODELS = {
    "vit": "vit_nano8",
    "tubevit": "tubevit_nano8",
    "joint": "vivit_nano8",
    "divided": "timesformer_nano8",
    "factorised": "vivit_fe_nano8",
}


def get_config(
    variant: str = "tubevit",
    init: str = "",
    seed: int = 0,
    steps: int = 400,
    clip_batch: int = 12,
    image_batch: int = 12,
    video_data: str = "moving_digits",
    image_data: str = "still_digits",
    splits: str = "test",
):
    if variant not in MODELS:
        raise unknown("variant", variant, MODELS)
    config = default_config()
    config.seed = seed
    config.model.update(name=MODELS[variant], gelu="exact", scan=False)  # few blocks: unrolled they train faster on CPU
    config.init.checkpoint = init or None
    config.input.fps = 8.0
    if variant in ("vit", "tubevit"):
        config.data.train.still_digits = dataset_config(
            source=image_data, head="digit", batch_size=image_batch, augment={"random_crop": True, "scale": 1.3}
        )
    if variant != "vit":
        config.data.train.moving_digits = dataset_config(
            source=video_data, head="motion", batch_size=clip_batch, augment={"random_crop": True, "scale": 1.1}
        )
    source, head = (image_data, "digit") if variant == "vit" else (video_data, "motion")
    for split in splits.split("+"):
        config.data.eval[split] = dataset_config(source=source, split=split, head=head, batch_size=50)
    config.optimizer.update(
        name="adam", learning_rate=3e-3, warmup_steps=steps // 10, weight_decay=0.0, grad_clip_norm=1.0
    )
    config.optimizer.b2 = 0.98
    config.train.steps = steps
    config.eval.every = steps
    config.checkpoint.update(every=steps, keep=1)
    config.loader.threads = 1
    config.log.every = 20
    return config

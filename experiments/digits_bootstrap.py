"""Section 3.6 on the embedded data: a small joint model and a larger image ViT become a larger video model.

    tubevit train --config digits_bootstrap:stage=vit --workdir runs/digits_vit
    tubevit train --config digits_bootstrap:stage=gate,small=runs/quickstart,large=runs/digits_vit --workdir runs/gate

The small model (width 96, 3 blocks) knows digit x motion from clips of 300 digits. The ViT (width 192, 6 blocks) has
seen no clip, but images of all 1,347 training digits, and is meant to know them better than the small model does. The
model that they form learns digit x motion (80 classes) from the same clips, and digits from images in the same steps.
All of its tokens have the paper's fixed positions, because those of the ViT do not say when a token was:

| stage | what is trained |
|---|---|
| vit | the image ViT |
| last_fc | bootstrapped: pooling and head |
| last | bootstrapped: the last 2 blocks |
| gate | bootstrapped: the last 2 blocks and the gate |
| lora | bootstrapped: adapters of rank 48 in all blocks: as many parameters as 2 blocks, updated by AdamW |
| full | bootstrapped: everything |
| scratch | the larger tube model from random parameters, on the same batches |

Hardware: 2 CPU cores. Time: at best 30 minutes for the ViT, 4 (last_fc) to 17 (lora) for the
others.
Expected: claim 8 of docs/reproducing.md.
"""

from tubevit.config import dataset_config, default_config
from tubevit.errors import unknown
from tubevit.recipes.paper import bootstrap_config

DEPTH = 6
TRAINED = {"last_fc": 0, "last": 2, "gate": 2, "lora": None, "full": DEPTH}
STAGES = ("vit", *TRAINED, "scratch")


def get_config(
    stage: str = "gate",
    small: str = "tubevit_nano8",
    large: str = "vit_ti8",
    seed: int = 0,
    steps: int | None = None,
):
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    vit = stage == "vit"
    if stage in TRAINED:
        config = bootstrap_config(small, large, "moving_digits", train_last=TRAINED[stage], position="fixed")
        config.train.gate = stage == "gate"
        if stage == "lora":
            config.train.adapter, config.train.lora.rank = "lora", 48
        config.data.train, config.data.eval, config.precision = {}, {}, "float32"
    else:
        config = default_config()
        config.model.name = "vit_ti8" if vit else "tubevit_ti8"
        config.model.depth = DEPTH
    config.seed = seed
    config.model.update(scan=False, remat="none")  # few blocks on CPU: memory is not short; unrolled they are faster
    config.input.fps = 8.0
    sources = {"clips": ("moving_digits", "digit_motion", 16), "images": ("still_digits", "digit", 32 if vit else 16)}
    if vit:
        del sources["clips"]
    crops = {"random_crop": True, "scale": 1.1}
    for name, (source, head, size) in sources.items():
        config.data.train[name] = dataset_config(source=source, head=head, batch_size=size, augment=crops)
        config.data.eval[name] = dataset_config(source=source, head=head, split="val", batch_size=50)
    if steps is None:
        steps = 2000 if vit else 600
    config.optimizer.update(name="muon", learning_rate=5e-3 if vit else 1e-2, weight_decay=0.2)
    config.optimizer.update(warmup_steps=steps // 10, b2=0.98, grad_clip_norm=1.0, ema_decay=0.99)
    config.train.steps = steps
    config.eval.update(every=steps, views="1x1")
    config.checkpoint.update(every=100, keep=1)
    config.loader.threads = 1
    config.log.every = 20
    return config

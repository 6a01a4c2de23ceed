"""The paper's claims on the embedded data: one variant of a model, of its data or of where it begins.

    tubevit train --config claims:variant=images --workdir runs/claims/images_0
    tubevit train --config claims:variant=two_stage --workdir runs/claims/two_stage_0

All variants have the width, depth and schedule of `joint`, which were chosen on `val` with `joint` alone. They learn
digit x motion (80 classes) from clips of 300 digits. Those that are trained jointly also learn digits from images of
1,347, in the same steps.

| variants | what differs from `joint` | claim |
|---|---|---|
| joint | | |
| video, images | only clips, only images | Table 5 |
| two_stage | only clips, beginning from `images` | Table 5 |
| learned, no_position, no_stride | the position embedding | Table 7a |
| tubes_1, tubes_2, tubes_3 | the 2D tube and the first 0, 1 or 2 others | Table 7b |
| no_s2d | no space-to-depth | Table 7c |
| interpolated | `no_s2d` with one kernel, interpolated for each 3D tube | Table 7e |
| half_clip | clips of half the time, for several views at evaluation | Table 7f |
| added_1, added_2, added_3 | `two_stage` with new attention layers before the last blocks | Table 8 |
| dense, vivit, timesformer, factorised | as `video`, but all tubelets of 4x8x8; the last three as published | Table 2 |

`clip_batch` and `image_batch` set the batch sizes. `runs` is the folder of the runs that others begin from.

Hardware: 2 CPU cores. Time: 1.5 (images) to 5 (interpolated) minutes at best; `python benchmarks/claims.py` runs all,
with 3 seeds.
Expected: see docs/reproducing.md.
"""

from tubevit.config import dataset_config, default_config
from tubevit.config.config import set_value
from tubevit.errors import unknown
from tubevit.tubes import PRESETS

*TUBES_3D, TUBE_2D = map(str, PRESETS["small"].tubes)
NO_S2D = "_".join(str(tube.plain) for tube in PRESETS["small"].tubes)
DENSE = "4x8x8/4x8x8"
CLIPS, IMAGES = 16, 32
VIDEO, STILL = {"images": 0}, {"clips": 0, "model.tubes": TUBE_2D}
TWO_STAGE = VIDEO | {"init.checkpoint": "images", "init.tubes": "inflate"}
VARIANTS = {
    "joint": {},
    "video": VIDEO,
    "images": STILL,
    "two_stage": TWO_STAGE,
    "learned": {"model.position": "learned"},
    "no_position": {"model.position": "none"},
    "no_stride": {"model.position": "fixed_no_stride"},
    **{f"tubes_{n}": {"model.tubes": "_".join([*TUBES_3D[: n - 1], TUBE_2D])} for n in (1, 2, 3)},
    "no_s2d": {"model.tubes": NO_S2D},
    "interpolated": {"model.tubes": NO_S2D, "model.interpolated": True},
    "half_clip": {"input.fps": 16.0},
    **{f"added_{n}": TWO_STAGE | {"model.add_attention": n} for n in (1, 2, 3)},
    "dense": VIDEO | {"model.tubes": DENSE},
    **{name: VIDEO | {"model.name": f"{model}_nano8"} for name, model in (
        ("vivit", "vivit"), ("timesformer", "timesformer"), ("factorised", "vivit_fe"))},
}  # fmt: skip


def get_config(
    variant: str = "joint",
    seed: int = 0,
    steps: int = 600,
    clip_batch: int = CLIPS,
    image_batch: int = IMAGES,
    runs: str = "runs/claims",
):
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    sizes = {"clips": clip_batch, "images": image_batch} | VARIANTS[variant]
    config = default_config()
    config.seed = seed
    config.model.name = "tubevit_nano8"
    config.model.scan = False  # three blocks: unrolled they train faster on CPU
    config.input.fps = 8.0
    for name, source, head in (("clips", "moving_digits", "digit_motion"), ("images", "still_digits", "digit")):
        if size := sizes.pop(name):
            crops = {"random_crop": True, "scale": 1.1}
            config.data.train[name] = dataset_config(source=source, head=head, batch_size=size, augment=crops)
            config.data.eval[name] = dataset_config(source=source, head=head, split="val", batch_size=50)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=steps // 10, weight_decay=0.2)
    config.optimizer.update(b2=0.98, grad_clip_norm=1.0, ema_decay=0.99)
    config.train.steps = config.eval.every = steps
    config.checkpoint.update(every=100, keep=1)
    config.loader.threads = 1
    config.log.every = 20
    for path, value in sizes.items():
        set_value(config, path, f"{runs}/{value}_{seed}" if path == "init.checkpoint" else value)
    return config

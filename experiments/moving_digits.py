"""The released joint model: motion and digit x motion from clips, digits from still images, with one backbone.

    tubevit train --config moving_digits --workdir runs/moving_digits

Each of the three label sets of the embedded data has its own head: 8 directions of motion, 80 pairs of digit and
motion, and 10 digits. The still images show the same digits as the clips, but they are other images.

Hardware: 2 CPU cores. Time: 45 minutes.
Expected: held-out top-1 of 99.7 % for motion, 52.8 % for digit x motion (chance: 1.25 %), 98.7 % for still digits (seed
0; `checkpoints/tubevit_nano8@moving_digits`).
"""

from tubevit.config import dataset_config, default_config


def get_config(seed: int = 0, steps: int = 5000):
    config = default_config()
    config.seed = seed
    config.model.name = "tubevit_nano8"
    config.model.scan = False  # three blocks: unrolled they train faster on CPU
    config.input.fps = 8.0
    crops = {"random_crop": True, "scale": 1.1}
    # The pair of digit and motion is what is hard to learn: most clips of a step are labelled with it.
    config.data.train.moving_digits = dataset_config(source="moving_digits", head="motion", batch_size=8, augment=crops)
    config.data.train.digit_motion = dataset_config(
        source="moving_digits", head="digit_motion", batch_size=48, augment=crops
    )
    config.data.train.still_digits = dataset_config(
        source="still_digits", head="digit", batch_size=16, augment={"random_crop": True, "scale": 1.3}
    )
    config.data.eval.moving_digits = dataset_config(source="moving_digits", split="test", head="motion", batch_size=50)
    config.data.eval.digit_motion = dataset_config(
        source="moving_digits", split="test", head="digit_motion", batch_size=50
    )
    config.data.eval.still_digits = dataset_config(source="still_digits", split="test", head="digit", batch_size=50)
    config.optimizer.update(name="adamw", learning_rate=1.2e-3, warmup_steps=200, weight_decay=0.05, grad_clip_norm=1.0)
    config.optimizer.b2 = 0.98
    config.train.steps = steps
    config.eval.every = 1000
    config.checkpoint.every = 1000
    config.loader.threads = 2
    config.log.every = 20
    return config

"""Joint image and video training on the embedded data: moving digits (motion) and still digits.

    tubevit train --config quickstart --workdir runs/quickstart

Hardware: 2 CPU cores, about 5 minutes. `make quickstart` makes the data, trains, evaluates and prints a summary.
Expected: held-out top-1 of 96.7 to 99.4 % for motion, 98.4 to 98.9 % for still digits (seeds 0, 1, 2).
"""

from tubevit.config import dataset_config, default_config


def get_config(seed: int = 0, steps: int = 900):
    config = default_config()
    config.seed = seed
    config.model.name = "tubevit_nano8"
    config.model.scan = False  # three blocks: unrolled they train faster on CPU
    config.input.fps = 8.0
    config.data.train.moving_digits = dataset_config(
        source="moving_digits", head="motion", batch_size=32, augment={"random_crop": True, "scale": 1.1}
    )
    config.data.train.still_digits = dataset_config(
        source="still_digits", head="digit", batch_size=32, augment={"random_crop": True, "scale": 1.3}
    )
    config.data.eval.moving_digits = dataset_config(source="moving_digits", split="test", head="motion", batch_size=50)
    config.data.eval.still_digits = dataset_config(source="still_digits", split="test", head="digit", batch_size=50)
    config.optimizer.update(name="adam", learning_rate=1.2e-3, warmup_steps=100, weight_decay=0.0, grad_clip_norm=1.0)
    config.optimizer.b2 = 0.98
    config.train.steps = steps
    config.eval.every = 450
    config.checkpoint.every = 180  # a multiple of log.every: resumed runs log the same averages
    config.loader.threads = 2
    config.log.every = 20
    return config

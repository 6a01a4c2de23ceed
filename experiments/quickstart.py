"""Joint image and video training on the embedded data: moving digits and still digits, with one backbone.

    tubevit train --config quickstart --workdir runs/quickstart

Some clips of a step are labelled with their motion and some with digit x motion, images with their digit. The clips
show only 300 of the 1,347 training digits: what the others look like is learned from the images.

Hardware: 2 CPU cores, about 6 minutes. `make quickstart` makes the data, trains, evaluates and prints a summary.
Expected: see README.md.
"""

from tubevit.config import dataset_config, default_config


def get_config(seed: int = 0, steps: int = 1000):
    config = default_config()
    config.seed = seed
    config.model.name = "tubevit_nano8"
    config.model.scan = False  # three blocks: unrolled they train faster on CPU
    config.input.fps = 8.0
    crops, evaluated = {"random_crop": True, "scale": 1.1}, {"split": "val", "batch_size": 50}
    for name, source, head, batch_size in (
        ("moving_digits", "moving_digits", "motion", 8),
        ("digit_motion", "moving_digits", "digit_motion", 16),
        ("still_digits", "still_digits", "digit", 64),
    ):
        data = dict(source=source, head=head)
        config.data.train[name] = dataset_config(**data, batch_size=batch_size, augment=crops)
        config.data.eval[name] = dataset_config(**data, **evaluated)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=100, weight_decay=0.2)
    config.optimizer.update(b2=0.98, grad_clip_norm=1.0, ema_decay=0.99)
    config.train.steps = steps
    config.eval.every = 500
    config.checkpoint.every = 200  # a multiple of log.every: resumed runs log the same averages
    config.loader.threads = 2
    config.log.every = 20
    return config

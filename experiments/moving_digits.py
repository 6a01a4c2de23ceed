"""The released joint model: motion and digit x motion from clips, digits from still images, with one backbone.

    tubevit train --config moving_digits --workdir runs/moving_digits

Each of the three label sets of the embedded data has its own head: 8 directions of motion, 80 pairs of digit and
motion, and 10 digits. The images show all training digits, the clips only 300 of them.

Hardware: CPU. Time: 50 minutes on one core, beside another run on the second one.
Expected: see checkpoints/tubevit_nano8@moving_digits/README.md.
"""

from tubevit.config import dataset_config, default_config


def get_config(seed: int = 0, steps: int = 4000):
    config = default_config()
    config.seed = seed
    config.model.name = "tubevit_nano8"
    config.model.scan = False  # three blocks: unrolled they train faster on CPU
    config.input.fps = 8.0
    crops, evaluated = {"random_crop": True, "scale": 1.1}, {"split": "val", "batch_size": 50}
    for name, source, head, batch_size in (
        ("moving_digits", "moving_digits", "motion", 8),
        ("digit_motion", "moving_digits", "digit_motion", 24),
        ("still_digits", "still_digits", "digit", 32),
    ):
        data = dict(source=source, head=head)
        config.data.train[name] = dataset_config(**data, batch_size=batch_size, augment=crops)
        config.data.eval[name] = dataset_config(**data, **evaluated)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=400, weight_decay=0.2)
    config.optimizer.update(b2=0.98, grad_clip_norm=1.0, ema_decay=0.998)
    config.train.steps = steps
    config.eval.every = 500
    config.checkpoint.every = 500
    config.loader.threads = 2
    config.log.every = 20
    return config

"""The experiment that the tests train: a small model on the embedded data, with all that is random switched on."""

from tubevit.config import dataset_config, default_config


def get_config(seed: int = 0, steps: int = 9):
    config = default_config()
    config.seed = seed
    config.model.update(name="tubevit_nano8", tubes="4x8x8/8x16x16_1x8x8/16x16x16", scan=False)
    config.model.update(width=24, depth=1, num_heads=2, mlp_dim=32, dropout=0.1, stochastic_depth=0.1)
    config.input.update(fps=8.0, size=32, path="dense")
    crops = {"random_crop": True, "scale": 1.2}
    config.data.train.moving_digits = dataset_config(source="moving_digits", head="motion", batch_size=4, augment=crops)
    config.data.train.still_digits = dataset_config(source="still_digits", head="digit", batch_size=4, augment=crops)
    config.data.eval.moving_digits = dataset_config(source="moving_digits", split="test", head="motion", batch_size=5)
    config.data.eval.still_digits = dataset_config(source="still_digits", split="test", head="digit", batch_size=5)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=2, grad_clip_norm=1.0)
    config.train.update(steps=steps, mixup=0.2, label_smoothing=0.1)
    config.eval.every = 6
    config.checkpoint.update(every=3, keep=2)
    config.log.every = 1
    config.loader.threads = 1
    config.mesh.data = 1  # of the eight fake devices
    return config

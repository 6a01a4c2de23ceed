import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tubevit.config import default_config
from tubevit.errors import UserError
from tubevit.models.abstract import parameters
from tubevit.training.loop import Parts
from tubevit.training.optimizer import learning_rate_schedule, make_optimizer, with_average

STEPS, WARMUP = 20, 4


def config(**settings):
    config = default_config()
    config.train.steps = STEPS
    config.optimizer.update(learning_rate=0.1, warmup_steps=WARMUP, **settings)
    return config


def learning_rate(step):
    if step < WARMUP:
        return 0.1 * step / WARMUP
    return 0.05 * (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP)))


def test_schedule_at_every_step():
    schedule = learning_rate_schedule(config())
    values = [float(schedule(step)) for step in range(STEPS + 5)]
    np.testing.assert_allclose(values[:STEPS], [learning_rate(step) for step in range(STEPS)], atol=1e-8)
    assert values[0] == 0 and values[WARMUP] == pytest.approx(0.1) and max(values) == values[WARMUP]
    assert values[STEPS:] == pytest.approx([0] * 5, abs=1e-8)


@pytest.mark.parametrize("warmup", [0, STEPS, STEPS + 10])
def test_schedule_without_warmup_or_cosine(warmup):
    settings = config()
    settings.optimizer.warmup_steps = warmup
    first = float(learning_rate_schedule(settings)(0))
    assert first == (pytest.approx(0.1) if warmup == 0 else 0)
    assert float(learning_rate_schedule(settings)(STEPS)) == pytest.approx(
        0.1 * STEPS / warmup if warmup else 0, abs=1e-8
    )


def by_hand(params, gradients, coupled, decay, clip, b1=0.9, b2=0.999, epsilon=1e-8):
    """Adam (L2) or AdamW in float64; kernels decay."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for step, grads in enumerate(gradients):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        scale = min(1, clip / norm) if clip else 1
        for name, value in params.items():
            g = grads[name].astype(np.float64) * scale
            wd = decay if name == "kernel" else 0
            if coupled:
                g = g + wd * value
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            update = first[name] / (1 - b1 ** (step + 1)) / (np.sqrt(second[name] / (1 - b2 ** (step + 1))) + epsilon)
            if not coupled:
                update = update + wd * value
            params[name] = value - learning_rate(step) * update
    return params


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_equals_float64_by_hand(name, decay, clip):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,), "scale": (4,)}
    params = {key: rng.normal(0, 1, shape).astype(np.float32) for key, shape in shapes.items()}
    gradients = [{key: rng.normal(0, 1, shape).astype(np.float32) for key, shape in shapes.items()} for _ in range(6)]
    gradients[3] = {key: value * 1e-3 for key, value in gradients[3].items()}  # below the clip
    settings = {} if clip is None else {"grad_clip_norm": clip}
    optimizer = make_optimizer(config(name=name, weight_decay=decay, **settings))
    with jax.enable_x64(True):  # 1 - 0.999 alone is off by 1e-5 in float32
        ours = {key: jnp.asarray(value, jnp.float64) for key, value in params.items()}
        state = optimizer.init(ours)
        for grads in gradients:
            updates, state = optimizer.update({k: jnp.asarray(v, jnp.float64) for k, v in grads.items()}, state, ours)
            ours = optax.apply_updates(ours, updates)
    expected = by_hand(params, gradients, name == "adam", decay, clip)
    for key in shapes:
        np.testing.assert_allclose(ours[key], expected[key], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_only_kernels_decay(name, tiny):
    """With a gradient of 0, what moves decays."""
    params = parameters(tiny())
    optimizer = make_optimizer(config(name=name, weight_decay=0.1))
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(optimizer.update)
    for _ in range(2):  # the learning rate of the first step is 0
        updates, state = update(zeros, state, params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]
        if np.any(np.asarray(leaf))
    }
    names = {
        jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    assert moved == {key for key in names if key.endswith("kernel")}
    assert {"encoder/blocks/mlp/up/kernel", "tokenizer/tubes/0/kernel", "heads/default/kernel"} <= moved
    assert {"encoder/norm/scale", "heads/default/bias", "tokenizer/tubes/0/bias"} <= names - moved


def test_first_moment_in_bfloat16(tiny_run, train_tiny, read_metrics, read_arrays, tmp_path):
    """It takes half of the bytes, and changes the losses by its rounding only."""
    train_tiny(tmp_path, **{"optimizer.mu_dtype": "bfloat16"})
    ours, full = read_arrays(tmp_path, 9), read_arrays(tiny_run, 9)
    assert {name: 2 * len(value) for name, value in ours.items() if "mu" in name} == {
        name: len(value) for name, value in full.items() if "mu" in name
    }
    assert sum(map(len, ours.values())) < 0.84 * sum(map(len, full.values()))  # 10 bytes per parameter instead of 12
    lines = [[line["train/loss"] for line in read_metrics(run) if "train/loss" in line] for run in (tmp_path, tiny_run)]
    np.testing.assert_allclose(*lines, rtol=1e-3)


def test_unknown_dtype_of_the_first_moment(tiny_config):
    with pytest.raises(UserError, match="optimizer.mu_dtype 'bfloat'.*bfloat16"):
        tiny_config({"optimizer.mu_dtype": "bfloat"})


def test_average_equals_float64_by_hand():
    """Beside an optimiser that it does not change; exchanging it with the parameters twice changes nothing."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(0, 1, (4, 3)), "bias": rng.normal(0, 1, 3)}
    plain, averaged = (make_optimizer(config(ema_decay=decay)) for decay in (0.0, 0.6))
    with jax.enable_x64(True):
        ours = theirs = jax.tree.map(jnp.asarray, params)
        state, other = averaged.init(ours), plain.init(theirs)
        expected = params
        for step in range(8):
            grads = jax.tree.map(lambda value: jnp.asarray(rng.normal(0, 1, value.shape)), params)
            updates, state = averaged.update(grads, state, ours)
            ours = optax.apply_updates(ours, updates)
            updates, other = plain.update(grads, other, theirs)
            theirs = optax.apply_updates(theirs, updates)
            share = min(0.6, (1 + step) / (10 + step))
            expected = {key: share * expected[key] + (1 - share) * np.asarray(theirs[key]) for key in params}
    whole = {"params": ours, "opt_state": state}
    for key in params:
        np.testing.assert_array_equal(ours[key], theirs[key])
        np.testing.assert_allclose(with_average(whole)["params"][key], expected[key], rtol=1e-12)
        assert np.abs(expected[key] - ours[key]).max() > 0.01
    twice = with_average(with_average(whole))
    jax.tree.map(np.testing.assert_array_equal, twice, whole)


def test_average_is_saved_evaluated_and_resumed(train_tiny, read_arrays, tmp_path):
    """With Muon, too, and its momentum in bfloat16: the run from step 6 ends with the same bytes."""
    evaluated = []
    parts = Parts(make_evaluation=lambda experiment, mesh: lambda state: evaluated.append(state["params"]) or {})
    changes = {"optimizer.name": "muon", "optimizer.mu_dtype": "bfloat16", "optimizer.ema_decay": 0.5}
    train_tiny(tmp_path, parts, **changes)
    saved = read_arrays(tmp_path, 9)
    for name, leaf in flat(evaluated[-1]).items():
        keys = "".join(f"['{key}']" for key in name.split("/"))
        assert saved[f"['params']{keys}"] == np.asarray(leaf).tobytes()
    kernel = "['tokenizer']['tubes']['0']['kernel']"
    assert saved[f"['params']{kernel}"] != saved[f"['optimizer']['average']{kernel}"]
    shutil.rmtree(tmp_path / "checkpoints" / "9")
    train_tiny(tmp_path, **changes)
    assert read_arrays(tmp_path, 9) == saved


def test_muon_makes_momentum_orthogonal(tiny):
    """The first update of each matrix has the singular vectors of its gradient and nearly equal singular values, with
    a root mean square near 0.2; all other parameters are updated as by AdamW."""
    params, rng = parameters(tiny(depth=2)), np.random.default_rng(0)
    grads = jax.tree.map(lambda value: jnp.asarray(rng.normal(0, 1, value.shape), jnp.float32), params)
    updates = {}
    for name in ("muon", "adamw"):
        optimizer = make_optimizer(config(name=name, weight_decay=0.1))
        update = jax.jit(optimizer.update)
        _, state = update(grads, optimizer.init(params), params)  # at a learning rate of 0
        updates[name] = flat(update(grads, state, params)[0])
    params, grads, rate = flat(params), flat(grads), learning_rate(1)
    matrices = {"qkv": (2, 24, 3, 24), "out": (2, 24, 24), "up": (2, 24, 40), "down": (2, 40, 24)}
    seen = 0
    for path, update in updates["muon"].items():
        part = path.split("/")[-2]
        if "encoder/blocks" not in path or not path.endswith("kernel"):
            np.testing.assert_allclose(update, updates["adamw"][path], rtol=1e-6, atol=1e-10)
            continue
        seen += 1
        step, gradient = (x.reshape(matrices[part]) for x in (-update / rate - 0.1 * params[path], grads[path]))
        if part == "qkv":
            step, gradient = (x.swapaxes(1, 2).reshape(6, 24, 24) for x in (step, gradient))
        for ours, of in zip(step, gradient, strict=True):
            left, values, right = np.linalg.svd(of, full_matrices=False)
            inner = left.T @ ours @ right.T / (0.2 * max(ours.shape) ** 0.5)
            large = np.diag(inner)[values > 0.1 * values[0]]  # five iterations do not bring the smallest to 1
            assert len(large) > 18 and 0.6 < large.min() and large.max() < 1.3
            assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-3
    assert seen == 4


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}

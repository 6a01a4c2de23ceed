import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tubevit.config.experiment import open_experiment
from tubevit.config.resolve import resolve
from tubevit.data.joint import joint_batches
from tubevit.models.abstract import graph_of
from tubevit.models.elastic import drawn_models, elastic_models
from tubevit.training.optimizer import make_optimizer
from tubevit.training.step import chosen_by_step, initial_state, joint_loss, make_step, taught_loss, teaching

CALM = {"model.dropout": "0", "model.stochastic_depth": "0", "train.mixup": "0"}  # nothing random
VIDEO, IMAGE = "moving_digits", "still_digits"


class Setup:
    """What a step needs, of the tiny experiment with changes."""

    def __init__(self, config):
        experiment = open_experiment(resolve(config))
        self.config, self.model = experiment.config, experiment.model
        self.optimizer = make_optimizer(self.config)
        self.graph = graph_of(self.model)
        self.step = make_step(self.graph, self.optimizer, self.config)
        loads = {name: (load, self.config.data.train[name].batch_size) for name, load in experiment.train.items()}
        batches = joint_batches(loads, 0)
        parts = {
            name: {k: v for k, v in part.items() if k in ("pixels", "label")} for name, part in next(batches).items()
        }
        batches.close()
        self.batches = [parts]

        self.initial = jax.jit(lambda seed: initial_state(self.model, self.optimizer, jax.random.key(seed)))
        self._gradient = jax.jit(jax.grad(self._loss))

    def state(self, seed=0):
        return self.initial(seed)

    def _loss(self, params, batch, weights):
        datasets = {
            name: types.SimpleNamespace(head=dataset.head, loss_weight=weights[name])
            for name, dataset in self.config.data.train.items()
        }
        config = types.SimpleNamespace(train=self.config.train, data=types.SimpleNamespace(train=datasets))
        return joint_loss(self.graph, params, {}, batch, config, jax.random.key(0))[0]

    def gradient(self, params, video, image, batch=None):
        """Gradients by name, for weights of the two losses."""
        gradient = self._gradient(params, batch or self.batches[0], {VIDEO: video, IMAGE: image})
        flat = jax.tree_util.tree_flatten_with_path(gradient)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}


@pytest.fixture(scope="module")
def calm(tiny_config):
    return Setup(tiny_config(CALM | {"optimizer.learning_rate": "5e-3", "train.steps": "100"}))


@pytest.fixture(scope="module")
def random(tiny_config):
    return Setup(tiny_config())


def test_a_checked_step_computes_the_same(tiny_config):
    """Beside the new state, it returns logits, and the gradients of all pixels."""
    setup = Setup(tiny_config({"input.path": "tubes", "train.grad_accum_steps": "2"}))
    (batch,) = setup.batches
    checked = make_step(setup.graph, setup.optimizer, setup.config, checked=True)
    state, _, rows = checked(setup.state(), batch)
    expected, _ = setup.step(setup.state(), batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), state, expected)
    assert {name: len(logits) for name, logits in rows["logits"].items()} == {VIDEO: 2, IMAGE: 2}  # of each part
    pixels = [x for name in sorted(batch) for x in jax.tree.leaves(batch[name]["pixels"])]
    assert [x.shape for x in rows["gradients"]] == [(len(x) // 2, *x.shape[1:]) for x in pixels]
    assert all(np.any(x != 0) for x in rows["gradients"])


def test_compiles_once_donates_and_overfits(calm):
    state, losses = calm.state(), []
    before = jax.tree.leaves(state["params"])
    for i in range(40):
        state, metrics = calm.step(state, calm.batches[0])
        losses.append({key: float(value) for key, value in metrics.compute().items()})
        if i == 0:
            assert all(leaf.is_deleted() for leaf in before)
    assert calm.step._cache_size() == 1
    assert int(state["step"]) == 40 and state["step"].dtype == jnp.int32
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]
    for name in (VIDEO, IMAGE):
        assert losses[-1][f"{name}_loss"] < losses[0][f"{name}_loss"]
    for row in losses:
        assert set(row) == {"loss", "gradient_norm", f"{VIDEO}_loss", f"{IMAGE}_loss"}
        assert row["loss"] == pytest.approx(row[f"{VIDEO}_loss"] + row[f"{IMAGE}_loss"], rel=1e-6)
        assert row["gradient_norm"] > 0


def test_losses_are_those_of_the_logits(calm):
    params, batch = calm.state()["params"], jax.tree.map(jnp.asarray, calm.batches[0])
    total, (losses, _) = jax.jit(lambda p: joint_loss(calm.graph, p, {}, batch, calm.config, jax.random.key(0)))(params)
    forward = jax.jit(lambda p, pixels, head: nnx.merge(calm.graph, p)(pixels, head=head), static_argnames="head")
    for name, head in ((VIDEO, "motion"), (IMAGE, "digit")):
        logits = np.asarray(forward(params, batch[name]["pixels"], head=head), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        of_label = log_p[np.arange(4), batch[name]["label"]]
        expected = -(0.9 * of_label + 0.1 * log_p.mean(axis=1)).mean()  # label smoothing 0.1
        assert float(losses[name]) == pytest.approx(expected, rel=1e-5)
    assert float(total) == pytest.approx(sum(map(float, losses.values())), rel=1e-6)


def test_gradients_by_head_and_weight(calm):
    params = calm.state()["params"]
    both = calm.gradient(params, 1.0, 2.0)
    video, image = calm.gradient(params, 1.0, 0.0), calm.gradient(params, 0.0, 1.0)
    alone = calm.gradient(params, 1.0, 0.0, {VIDEO: calm.batches[0][VIDEO]})
    for name in both:
        scale = np.abs(both[name]).max() + 1e-3
        np.testing.assert_allclose(both[name], video[name] + 2 * image[name], atol=1e-5 * scale)
        np.testing.assert_allclose(video[name], alone[name], atol=1e-5 * scale)
    for name in ("heads/digit/kernel", "heads/digit/bias"):
        assert not video[name].any() and image[name].any()
    for name in ("heads/motion/kernel", "heads/motion/bias", "tokenizer/tubes/0/kernel", "tokenizer/tubes/0/bias"):
        assert video[name].any() and not image[name].any()  # images leave the 3D tube alone
    for name in ("tokenizer/tubes/1/kernel", "encoder/blocks/mlp/up/kernel", "encoder/norm/scale"):
        assert video[name].any() and image[name].any()


@pytest.mark.parametrize("changes", [{}, CALM, {"model.scan": "true"}])
def test_own_code_does_not_promote(tiny_config, changes):
    setup = Setup(tiny_config(changes))
    params = jax.eval_shape(setup.state)["params"]

    def loss(params, batch):
        return joint_loss(setup.graph, params, {}, batch, setup.config, jax.random.key(0))

    with jax.numpy_dtype_promotion("strict"):
        (total, (losses, _)), grads = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, setup.batches[0])
    leaves = [total, *losses.values(), *jax.tree.leaves(grads)]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_elastic_steps(tiny_config):
    """Each budget but the largest is compiled once, is as likely as the others, and follows from seed and step."""
    setup = Setup(tiny_config({"train.elastic": "25%,50%,100%"} | CALM))
    models, made = elastic_models(setup.model, setup.config.train.elastic), []

    def make(model):
        made.append(model)
        return make_step(graph_of(model), setup.optimizer, setup.config, **teaching(model, models))

    step_of, state, losses = chosen_by_step(make, drawn_models(models), seed=0), setup.state(), []
    for number in range(1, 9):
        state, metrics = step_of(number)(state, setup.batches[0])
        losses.append(float(metrics.compute()["loss"]))
    assert sorted(map(models.index, made)) == [0, 1] and all(
        step._cache_size() == 1 for step in map(step_of, (1, 2, 8))
    )
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    drawn = drawn_models(models)
    chosen, others = ([chosen_by_step(drawn.index, drawn, seed)(i) for i in range(1, 1001)] for seed in (0, 1))
    assert [models.index(model) for model in made] == list(dict.fromkeys(chosen[:8]))
    assert abs(np.mean(chosen) - 0.5) < 0.08 and chosen != others  # 5 standard deviations
    alone = models[:1]  # the only budget of a run is trained on the labels
    assert drawn_models(alone) == alone and teaching(models[0], alone) == {}


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_largest_budget_teaches_the_others(tiny_config, calm, multi_label):
    """Its loss is that of the labels; the other's is that of its probabilities, by hand, which have no gradient."""
    config = tiny_config(CALM | {"train.mixup": "0.5", f"data.train.{IMAGE}.loss_weight": "0.25"})
    heads = tuple((name, dataclasses.replace(head, multi_label=multi_label)) for name, head in calm.model.heads)
    largest, other = (graph_of(calm.model.replace(budget=budget, heads=heads)) for budget in (None, "50%:even"))
    batch = {name: dict(part) for name, part in jax.tree.map(jnp.asarray, calm.batches[0]).items()}
    for name, head in ((VIDEO, "motion"), (IMAGE, "digit")) if multi_label else ():
        batch[name]["label"] = jax.nn.one_hot(batch[name]["label"], dict(heads)[head].classes)
    arguments = ({}, batch, config, jax.random.key(0))

    def compute(kind, *graphs, **teacher):
        function = jax.value_and_grad(lambda params: kind(*graphs, params, *arguments, **teacher), has_aux=True)
        return jax.jit(function)(calm.state()["params"])

    (total, (losses, logits)), gradients = compute(taught_loss, largest, other)
    (first, (own, fixed)), first_gradients = compute(joint_loss, largest)
    (second, (_, taught)), second_gradients = compute(joint_loss, other, teacher=fixed)
    both = {name: (fixed[name], taught[name]) for name in batch}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), (losses, logits), (own, both))
    assert float(total) == pytest.approx((float(first) + float(second)) / 2, rel=1e-5)
    jax.tree.map(
        lambda x, y, z: np.testing.assert_allclose(x, (y + z) / 2, rtol=1e-4, atol=1e-6),
        gradients, first_gradients, second_gradients,
    )  # fmt: skip
    by_hand = 0.0
    for name in batch:
        x, y = (np.asarray(each[name], np.float64) for each in (fixed, taught))
        if multi_label:
            p, q = (1 / (1 + np.exp(-each)) for each in (x, y))
            loss = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
        else:
            p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (x, y))
            loss = -(p * np.log(q)).sum(axis=1).mean()
        by_hand += {VIDEO: 1, IMAGE: 0.25}[name] * loss
    assert float(second) == pytest.approx(by_hand, rel=1e-5)


def test_what_is_random_follows_from_the_step(random):
    batch = random.batches[0]

    def loss(step):
        state = random.state() | {"step": jnp.asarray(step, jnp.int32)}
        return float(random.step(state, batch)[1].compute()["loss"])

    losses = [loss(step) for step in (0, 1, 2, 3)]
    assert loss(3) == losses[3] and len(set(losses)) == 4


def test_initial_parameters_follow_from_the_seed(calm):
    one, two, again = (calm.state(seed) for seed in (0, 1, 0))
    assert int(one["step"]) == 0
    kernels = [state["params"]["encoder"]["blocks"]["mlp"]["up"]["kernel"] for state in (one, two, again)]
    assert (kernels[0] != kernels[1]).any() and (kernels[0] == kernels[2]).all()

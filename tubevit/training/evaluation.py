"""Evaluation during training, on the data sets of `data.eval`."""

import logging
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from tubevit.config.experiment import Experiment
from tubevit.data.views import Views
from tubevit.errors import NothingDecoded
from tubevit.evaluation.evaluate import EvalSettings, evaluate_source
from tubevit.evaluation.forward import make_forward
from tubevit.models.freeze import join_frozen
from tubevit.models.lora import merge_adapter
from tubevit.sharding.rules import shardings

logger = logging.getLogger(__name__)


def make_evaluation(experiment: Experiment, mesh: Mesh) -> Callable[[dict], dict[str, float | None]]:
    """Make a function that evaluates a training state: state -> {eval/<name>/<score>: value}.

    Where files are broken, `eval/<name>/broken` is their share.

    Each head is compiled once, at its first evaluation.
    """
    config, loader = experiment.config, experiment.config.loader
    heads = {dataset.head for dataset in config.data.eval.values()}
    views = Views.from_keys(config.eval)
    forwards = {head: make_forward(experiment.model, head, mesh, views.average) for head in heads}
    settings = EvalSettings(views, loader.threads, loader.workers, mesh=mesh)

    def join(params: dict, frozen: dict) -> dict:
        return merge_adapter(join_frozen(params, frozen), experiment.model.lora)

    def evaluate(state: dict) -> dict[str, float | None]:
        params, results = state["params"], {}
        if state["frozen"] and experiment.eval:
            whole = jax.eval_shape(join, params, state["frozen"])
            params = jax.jit(join, out_shardings=shardings(whole, mesh))(params, state["frozen"])
        for name, load in experiment.eval.items():
            head, size = config.data.eval[name].head, config.data.eval[name].batch_size
            scores = [f"eval/{name}/{key}" for key in ("top1", "top5", "map", "loss")]
            try:
                evaluated = evaluate_source(forwards[head], params, load, size, name=name, head=head, settings=settings)
            except NothingDecoded as error:  # the state is saved before the run ends for it
                logger.warning(f"eval {name}: {error}")
                results |= dict.fromkeys(scores) | {f"eval/{name}/broken": 1.0}
                continue
            broken = ~evaluated.predictions.used
            if broken.any():
                logger.warning(
                    f"eval {name}: {broken.sum()} files cannot be decoded and are left out; tubevit evaluate lists them"
                )
                results[f"eval/{name}/broken"] = float(broken.mean())
            results |= {score: evaluated.record[score.rpartition("/")[2]] for score in scores}
        return results

    return evaluate

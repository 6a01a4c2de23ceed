"""The initial training state of a run, new or restored, on any mesh and any number of processes."""

import functools
import logging

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from tubevit.checkpoint.adapter import Base
from tubevit.checkpoint.checkpoint import RUN_FOLDER, Checkpoint, is_whole
from tubevit.checkpoint.manifest import manifest_entries
from tubevit.checkpoint.paths import unflatten
from tubevit.checkpoint.run_checkpoints import newest_good
from tubevit.config import names, pairs
from tubevit.config.experiment import Experiment
from tubevit.models.abstract import initial_parameters
from tubevit.models.config import ModelConfig
from tubevit.models.freeze import join_frozen, split_frozen
from tubevit.models.lora import add_adapter
from tubevit.sharding.agreement import agree
from tubevit.sharding.hosts import run_on_all
from tubevit.sharding.rules import put, shardings
from tubevit.training.optimizer import with_average
from tubevit.training.step import initial_state, state_of
from tubevit.transfer.initialise import TUBES, initialise
from tubevit.zoo.hub_name import is_hub_name
from tubevit.zoo.names import open_checkpoint

logger = logging.getLogger(__name__)


def begin(
    experiment: Experiment, optimizer: optax.GradientTransformation, workdir, mesh: Mesh
) -> tuple[dict, int, Base | None]:
    """Restore the newest good checkpoint of the workdir, or make a new state.

    Returns:
        The state, sharded, its step, and the base if an adapter is trained: its parameters are not saved again.

    Raises:
        UserError: a checkpoint does not fit the model, all are damaged, the processes have different ones, or the base
            of an adapter has changed.
        RunError: the workdir cannot be read.
    """
    folder = workdir / RUN_FOLDER
    step = newest_good(folder)
    agree(lambda: _sources(experiment.config.init, None if step is None else folder / str(step)))
    if step is None:
        state, base = new_state(experiment, optimizer, mesh)
        return state, 0, base
    make = functools.partial(initial_state, experiment.model, optimizer, experiment.config.seed)
    abstract, checkpoint = jax.eval_shape(make), Checkpoint(folder / str(step))
    whole, base = jax.eval_shape(join_frozen, abstract["params"], abstract["frozen"]), checkpoint.base
    params = checkpoint.read("params", _placed(whole if base is None else base.without(whole), mesh))
    if base is not None:
        taken = run_on_all(lambda: base.read(open_checkpoint, checkpoint.name))
        params = join_frozen(params, put(unflatten(taken), mesh))
    split = functools.partial(split_frozen, model=experiment.model)
    placement = shardings((abstract["params"], abstract["frozen"]), mesh)
    params, frozen = jax.jit(split, out_shardings=placement)(params)
    opt_state = checkpoint.read("optimizer", _placed(abstract["opt_state"], mesh))
    logger.info(f"resuming {workdir} from step {step}")
    state = {"step": put(np.int32(step), mesh), "params": params, "frozen": frozen, "opt_state": opt_state}
    return with_average(state), step, base


def _sources(init, resumed) -> dict:
    """List the files of the checkpoints that the parameters come from: the resumed one, else those of `init`."""
    if resumed is not None:
        return {str(resumed): manifest_entries(resumed)}
    names = [] if init.checkpoint is None else [init.checkpoint, *({init.tubes} - set(TUBES))]
    return {name: manifest_entries(open_checkpoint(name).folder) for name in names}


def _placed(tree, mesh: Mesh):
    return jax.tree.map(lambda leaf, at: leaf.update(sharding=at), tree, shardings(tree, mesh))


def new_state(experiment: Experiment, optimizer: optax.GradientTransformation, mesh: Mesh) -> tuple[dict, Base | None]:
    """Make the state at step 0, random or from `init.checkpoint`, on its devices; and the base of an adapter."""
    model, seed, init = experiment.model, experiment.config.seed, experiment.config.init
    make = functools.partial(initial_state, model, optimizer, seed)
    if init.checkpoint is None:
        return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))(), None
    params = jax.jit(functools.partial(initial_parameters, model, seed))()
    settings = {"skip": names(init.skip), "renamed": pairs(init.rename), "tubes": init.tubes}
    params, notes = run_on_all(lambda: initialise(params, model, init.checkpoint, **settings))
    logger.info("\n  ".join([f"beginning from {init.checkpoint}", *notes]))
    base = None if model.lora is None else run_on_all(lambda: base_of(init.checkpoint, params, model))
    params = put(params, mesh)

    def to_state(params: dict) -> dict:
        return state_of(add_adapter(params, model, seed), model, optimizer)

    return jax.jit(to_state, out_shardings=shardings(jax.eval_shape(to_state, params), mesh))(params), base


def base_of(name: str, params: dict, model: ModelConfig) -> Base:
    """Return the base of an adapter that begins with parameters from a checkpoint, see `Base.of`."""
    checkpoint = open_checkpoint(name)
    if is_hub_name(name):
        name, step = str(checkpoint), None  # with its commit: a branch goes on
    else:
        step = None if checkpoint.workdir is None or is_whole(name) else checkpoint.step
    return Base.of(name, step, checkpoint.read_parameters(), split_frozen(params, model)[1])

"""Elastic training: each step draws a budget, and for each row of its batch the tokens that are kept.

The largest budget is not drawn: each step computes it too, and it teaches the one that was drawn, see `taught_loss`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, PRNGKeyArray

from tubevit.budget import Budget, shares
from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.tubes import Triple

_DRAW = 2**16  # purpose of the key, beyond the numbers of all layers
_WITHOUT_A_TUBE = 0.25  # share of the rows; with one tube more often, small models learn more slowly


def elastic_models(model: ModelConfig, elastic: str) -> list[ModelConfig]:
    """Return a model once for each share of `train.elastic`, in ascending order; only itself if there is none.

    Raises UserError if a share has another form, or the model must take all tokens.
    """
    try:
        budgets = [None if share == 1 else Budget(share, "random") for share in shares(elastic)]
        return [model.replace(budget=budget) for budget in budgets] or [model]
    except UserError as error:
        raise UserError(f"train.elastic: {error}") from error


def drawn_models(models: Sequence[ModelConfig]) -> Sequence[ModelConfig]:
    """Return those of the `elastic_models` of which each step draws one: all but the last, or the only one."""
    return models[:-1] or models


def models_of_largest_step(model: ModelConfig, elastic: str) -> list[ModelConfig]:
    """Return the models that the step with the most tokens computes: one, or those of the two largest budgets."""
    return elastic_models(model, elastic)[-2:]


def draw(key: PRNGKeyArray, budget: Budget, grids: Sequence[Triple], rows: int) -> Int[Array, "rows n"]:
    """Draw the tokens that a budget keeps of each row: ascending indices into the tokens of all tubes.

    A smaller budget draws a part of what a larger one draws with the same key. All tokens are equally likely, but a
    quarter of the rows does without one of the tubes, as far as the others have enough tokens.
    """
    sizes = np.array(list(map(math.prod, grids)))
    of_tubes, of_tokens, of_rows = jax.random.split(jax.random.fold_in(key, _DRAW), 3)
    last = jax.random.randint(of_tubes, (rows, 1), 0, len(sizes)) == np.repeat(np.arange(len(sizes)), sizes)
    last &= jax.random.bernoulli(of_rows, _WITHOUT_A_TUBE, (rows, 1))
    scores = last.astype(jnp.float32) + jax.random.uniform(of_tokens, last.shape)
    return jnp.sort(jnp.argsort(scores, axis=1)[:, : budget.total(int(sizes.sum()))], axis=1)

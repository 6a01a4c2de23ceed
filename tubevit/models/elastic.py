"""Elastic training: each step draws a budget, and for each row of its batch the tokens that are kept."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, PRNGKeyArray

from tubevit.budget import Budget, shares
from tubevit.models.config import ModelConfig
from tubevit.tubes import Triple

_DRAW = 2**16  # purpose of the key, beyond the numbers of all layers


def elastic_models(model: ModelConfig, elastic: str) -> list[ModelConfig]:
    """Return a model once for each share of `train.elastic`, in ascending order; only itself if there is none.

    Raises UserError if a share has another form, or the model must take all tokens.
    """
    budgets = [None if share == 1 else Budget(share, "random") for share in shares(elastic)]
    return [model.replace(budget=budget) for budget in budgets] or [model]


def draw(key: PRNGKeyArray, budget: Budget, grids: Sequence[Triple], rows: int) -> Int[Array, "rows n"]:
    """Draw the tokens that a budget keeps of each row: ascending indices into the tokens of all tubes.

    For half of the rows, all tokens are equally likely. For the others, the tubes come in a random order, each of them
    whole while the budget lasts.
    """
    sizes = np.array(list(map(math.prod, grids)))
    of_tubes, of_tokens, of_rows = jax.random.split(jax.random.fold_in(key, _DRAW), 3)
    ranks = jnp.argsort(jax.random.uniform(of_tubes, (rows, len(sizes))), axis=1).astype(jnp.float32)
    by_tube = jax.random.bernoulli(of_rows, 0.5, (rows, 1))
    first = jnp.where(by_tube, ranks, jnp.float32(0))[:, np.repeat(np.arange(len(sizes)), sizes)]
    scores = first + jax.random.uniform(of_tokens, (rows, int(sizes.sum())))
    return jnp.sort(jnp.argsort(scores, axis=1)[:, : budget.total(int(sizes.sum()))], axis=1)

"""Where activations lie on several devices: a hook that whoever compiles a step over a mesh sets while it is traced.

With parameters split over the devices that also split the batch, XLA would otherwise split some activations by
features, and move them between the two layouts in every block.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

_constraint: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("constraint", default=None)


@contextlib.contextmanager
def activations_placed(constraint: Callable[[jax.Array], jax.Array] | None) -> Iterator[None]:
    """While it is open, `place` is `constraint`; None places nothing."""
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)


def place(array: jax.Array) -> jax.Array:
    """An array (B, ...) of activations, kept split by its rows where a mesh is used."""
    constraint = _constraint.get()
    return array if constraint is None else constraint(array)

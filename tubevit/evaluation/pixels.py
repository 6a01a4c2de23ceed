"""A linear model of small grey clips, without learned features: a trained model should be better."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tubevit.data.augment import Augment
from tubevit.data.pipeline import SampleLoader
from tubevit.data.sources import Source
from tubevit.sharding.mesh import batch_sharding

SIDE = 16  # pixels
MOST_FILES = 4_000  # of the training split: the regression takes memory and time for the square of their number
PENALTIES = tuple(10.0**power for power in range(-1, 6))
DESCRIPTION = (
    f"ridge regression on the grey values of {SIDE}x{SIDE} pixels of every frame, the penalty chosen by leave-one-out "
    f"among {PENALTIES[0]:g} to {PENALTIES[-1]:g}, of at most {MOST_FILES:,} training files"
)


def worse(top1: float, of_pixels: float) -> str:
    """Say that a model is worse than this probe on the same files."""
    return (
        f"the model has top1 {top1:.3f}, less than the {of_pixels:.3f} of a linear model of pixels; docs/faq.md says "
        "what usually helps"
    )


def load_small(source: Source, frames: int, fps: float | None) -> SampleLoader:
    """Load the frames of a model's clips at the size of this probe."""
    return SampleLoader(source, frames, fps, SIDE, Augment())


def some_files(source: Source, most: int = MOST_FILES) -> Source:
    """Return a source of at most `most` of the files, evenly spread over it."""
    if len(source) <= most:
        return source
    chosen = np.unique(np.linspace(0, len(source) - 1, most).astype(int))
    read, at = source.read, source.listed_at
    return dataclasses.replace(
        source,
        keys=[source.keys[i] for i in chosen],
        labels=source.labels[chosen],
        listed_at=[at[i] for i in chosen] if len(at) else at,
        read=None if read is None else _Chosen(read, chosen),
    )


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Reads file i of those that were chosen; worker processes can pickle it."""

    read: Callable
    chosen: np.ndarray

    def __call__(self, index: int):
        return self.read(int(self.chosen[index]))


def grey_values(mesh: Mesh | None = None) -> Callable:
    """Make a function that takes the place of a forward pass: (params, pixels) -> grey values (B, views, D), -1..1."""

    def forward(params: dict, pixels: jax.Array) -> jax.Array:
        grey = pixels.astype(jnp.float32).mean(axis=-1)
        return (grey / 127.5 - 1.0).reshape(*pixels.shape[:2], -1)

    return jax.jit(forward, out_shardings=None if mesh is None else batch_sharding(mesh))


def fit_ridge(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the regression; return the classes that occur, and softmax of its outputs for the held-out files.

    The outputs are near -1 and 1, so that the order of the classes means more than the probabilities.
    """
    from scipy.special import softmax
    from sklearn.linear_model import RidgeClassifierCV

    ridge = RidgeClassifierCV(alphas=PENALTIES).fit(features, labels)
    outputs = ridge.decision_function(held_out)
    if outputs.ndim == 1:  # two classes
        outputs = np.stack([-outputs, outputs], axis=1)
    return ridge.classes_, softmax(outputs, axis=1)

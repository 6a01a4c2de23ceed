"""The block of a ViT (paper section 3.1, equations 1 and 2), with the options that foreign ViTs need."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, PRNGKeyArray

from tubevit.models.attention import Attention, platform
from tubevit.models.config import ModelConfig
from tubevit.models.patterns import UNKNOWN, TokenLayout


def dropout(
    x: Float[Array, "*shape"], rate: float | Float[Array, ""], key: PRNGKeyArray | None, per_sample: bool = False
) -> Float[Array, "*shape"]:
    """Zero random elements and scale up the rest.

    Args:
        x: activations.
        rate: probability of zeroing an element, from 0 to below 1.
        key: random key; None disables dropout.
        per_sample: zero whole samples of the first axis instead of elements (stochastic depth).
    """
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1) if per_sample else x.shape
    keep = 1 - jnp.asarray(rate, jnp.float32)  # bfloat16 is too coarse for the rate and for the random numbers
    scaled = (x.astype(jnp.float32) / keep).astype(x.dtype)
    return jnp.where(jax.random.bernoulli(key, keep, shape), scaled, jnp.zeros((), x.dtype))


def gelu(x: Float[Array, "*shape"], kind: str = "exact") -> Float[Array, "*shape"]:
    """Apply GELU, x Phi(x). With `tanh`, Phi is approximated as usual.

    The exact form uses erf: `jax.nn.gelu` uses erfc, which takes twice the time on CPU.
    """
    if kind == "tanh":
        return jax.nn.gelu(x, approximate=True)
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


class Mlp(nnx.Module):
    """Two linear layers with GELU. Parameters: `up` (D, M) and `down` (M, D), with biases."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        settings: dict = dict(kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(config.width, config.mlp_dim, **settings)
        self.down = nnx.Linear(config.mlp_dim, config.width, **settings)
        self.gelu = config.gelu

    def __call__(
        self, x: Float[Array, "*rows D"], rate: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*rows D"]:
        """Transform each row; `rate` is the dropout rate of the hidden layer."""
        # With (B, N) apart, XLA transposes on CPU; with flat rows, it changes layouts on TPU.
        rows = x.reshape(-1, x.shape[-1]) if platform() == "cpu" else x
        hidden = gelu(checkpoint_name(self.up(rows), "up"), self.gelu)
        return self.down(dropout(hidden, rate, key)).reshape(x.shape)


class Block(nnx.Module):
    """y = MSA(LN(x)) + x, then MLP(LN(y)) + y (equations 1 and 2).

    With the pattern `divided`, the tube tokens first attend over time, as x + MSA(LN(x)), and then in each frame. The
    output of attention over time starts at 0, so that the block starts as that of an image ViT.

    Parameters: `norm1`, `attention`, `norm2`, `mlp`; with LayerScale also `scale1` and `scale2` (D,), which multiply
    the two branches; with the pattern `divided` also `time_norm` and `time_attention`.
    """

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)
        self.norm2 = layer_norm(config, dtype, rngs=rngs)
        self.mlp = Mlp(config, dtype, rngs=rngs)
        self.divided = config.pattern == "divided"
        if self.divided:
            self.time_norm = layer_norm(config, dtype, rngs=rngs)
            self.time_attention = Attention(config, dtype, out_init=nnx.initializers.zeros, rngs=rngs)
        self.rate, self.scaled = config.dropout, config.layer_scale is not None
        if config.layer_scale is not None:
            self.scale1 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))
            self.scale2 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "B N D"],
        drop_path: float | Float[Array, ""],
        key: PRNGKeyArray | None = None,
        layout: TokenLayout = UNKNOWN,
    ) -> Float[Array, "B N D"]:
        """Apply the block; `drop_path` is the probability of leaving out each of its branches."""
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        if self.divided:
            x = self._over_time(x, drop_path, key, layout)
            y = layout.over_space(lambda frames: self.attention(self.norm1(frames)), x)
        else:
            y = self.attention(self.norm1(x), layout)
        y = dropout(y, self.rate, keys[0])
        y = y * self.scale1[...].astype(y.dtype) if self.scaled else y
        x = checkpoint_name(x + dropout(y, drop_path, keys[1], per_sample=True), "middle")
        y = dropout(self.mlp(self.norm2(x), self.rate, keys[2]), self.rate, keys[3])
        y = y * self.scale2[...].astype(y.dtype) if self.scaled else y
        return x + dropout(y, drop_path, keys[4], per_sample=True)

    def _over_time(self, x: Array, drop_path, key: PRNGKeyArray | None, layout: TokenLayout) -> Array:
        keys = (None,) * 2 if key is None else jax.random.split(jax.random.fold_in(key, 5))
        y = layout.over_time(lambda places: self.time_attention(self.time_norm(places)), x[:, layout.first :])
        y = dropout(y, self.rate, keys[0])
        y = dropout(y, drop_path, keys[1], per_sample=True)
        return jnp.concatenate([x[:, : layout.first], x[:, layout.first :] + y], axis=1)

    def weights(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> list[Float[Array, "_ _ _"]]:
        """Compute the attention weights of each attention layer in order; see `Attention.weights`.

        With `divided` these are the weights over time, (B S, T, T), and those in each frame, (B T, M, M).
        """
        if not self.divided:
            return self.attention.weights(self.norm1(x), layout)
        over_time = self.time_attention.weights(self.time_norm(layout.by_place(x[:, layout.first :])))
        frames = self.norm1(layout.by_frame(self._over_time(x, 0.0, None, layout)))
        return over_time + self.attention.weights(frames)


class AddedAttention(nnx.Module):
    """x + MSA(LN(x)): the layer that Table 8 adds to a pretrained ViT. Parameters: `norm` and `attention`."""

    def __init__(self, config: ModelConfig, dtype, *, rngs: nnx.Rngs):
        self.norm = layer_norm(config, dtype, rngs=rngs)
        self.attention = Attention(config, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], layout: TokenLayout = UNKNOWN) -> Float[Array, "B N D"]:
        return x + self.attention(self.norm(x), layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    x: Float[Array, "*rows D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "*rows D"]:
    """Normalise rows to mean 0 and variance 1, then scale and shift them; statistics and gradients are float32.

    Only the statistics of the rows are kept for the backward pass, under the name `statistics`, besides `x` itself.
    """
    return _normalise(x, scale, bias, epsilon)[0]


def _normalise(x, scale, bias, epsilon: float):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    if x.dtype == jnp.float32:
        variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    else:  # one pass over the rows; what it loses is less than their rounding
        variance = jnp.maximum(jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    mean, inverse = checkpoint_name(mean, "statistics"), checkpoint_name(inverse, "statistics")
    normal = (wide - mean) * inverse
    return (normal * scale + bias).astype(x.dtype), (x, mean, inverse, scale, bias)


def _normalise_backward(epsilon: float, kept, gradient):
    x, mean, inverse, scale, bias = kept
    gradient = jax.lax.optimization_barrier(gradient)  # without it XLA computes the product that makes this twice
    gradient = gradient.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    d_scale, d_bias = (gradient * normal).sum(axis=rows), gradient.sum(axis=rows)
    inner = gradient * scale
    along = inner.mean(axis=-1, keepdims=True) + normal * (inner * normal).mean(axis=-1, keepdims=True)
    return ((inner - along) * inverse).astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


normalise.defvjp(_normalise, _normalise_backward)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation by `normalise`. Parameters: `scale` and `bias` (D,)."""

    scale: nnx.Param
    bias: nnx.Param

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        scale, bias = jnp.asarray(self.scale[...]), jnp.asarray(self.bias[...])  # a model read from a file has NumPy's
        return normalise(x.astype(self.dtype), scale, bias, self.epsilon)


def layer_norm(config: ModelConfig, dtype, *, rngs: nnx.Rngs) -> LayerNorm:
    """Make a layer normalisation that computes its statistics in float32."""
    return LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)


def stacked(kind: Callable, count: int, config: ModelConfig, dtype, rngs: nnx.Rngs):
    """Make `count` modules as one, whose parameters have a leading axis."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return kind(config, dtype, rngs=rngs)

    return make(rngs)

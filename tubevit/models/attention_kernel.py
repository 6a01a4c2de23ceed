"""Self-attention as a Pallas kernel for TPUs: no padding, no transposing in main memory, no score leaves the chip.

A kernel reads blocks of whole heads of q, k and v out of the rows of their projection, (B, N, 3 H d). All keys of a
head lie in VMEM, so that each chunk of queries has its whole rows of scores at once. The forward pass keeps the
logarithms of the sums of exp(score). With them the backward pass computes the weights again. It returns the gradient of
the rows and its sums over the tokens, from which the gradient of the bias follows.

A block of 128 lanes may hold several heads. Products then take all 128 lanes, with those of other heads set to 0: that
takes the matrix unit as long as a narrower product, and saves shifting lanes. Heads whose widths do not divide 128 are
copied out of wider blocks first.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

LANES = 128
_SHARE = 0.9  # of the memory on the chip; the rest is for the compiler
_FORWARD_ROWS, _BACKWARD_ROWS = 128, 512  # queries at a time
_LOG2_E = 1.4426950408889634  # the chip computes powers of 2


def block_lanes(heads: int, width: int) -> int:
    """Return the channels of a block: the fewest whole heads that fill a multiple of 128 lanes, else all heads."""
    whole = (count * width for count in range(1, heads + 1) if heads % count == 0 and count * width % LANES == 0)
    return next(whole, heads * width)


def vmem_bytes() -> int:
    """Return the bytes of on-chip memory of the TPU that is traced for; other devices count as a v5p."""
    return pltpu.get_tpu_info().vmem_capacity_bytes if pltpu.is_tpu_device() else 64 * 2**20


def fits(tokens: int, heads: int, width: int, dtype=jnp.bfloat16) -> bool:
    """Return whether the backward pass over this many tokens, heads and channels per head fits on the chip."""
    return _needed(tokens, heads, width, dtype) <= _SHARE * vmem_bytes()


def _needed(tokens: int, heads: int, width: int, dtype) -> int:
    """Return the bytes on the chip of the backward pass: operands, twice for overlap, sums, copies and scores."""
    lanes, size = block_lanes(heads, width), jnp.dtype(dtype).itemsize
    blocks = (6 * 2 * size + 3 * 4) * tokens * lanes
    copies = (5 * size + 3 * 4) * tokens * -(-width // LANES) * LANES if _is_copied(width, lanes) else 0
    return blocks + copies + 3 * 4 * tokens * min(tokens, _BACKWARD_ROWS)


def _product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Multiply matrices over an axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


def _as_row(column: Array) -> Array:
    """Turn a column into a row, by a transpose: v4 has no instruction for such a reshape."""
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


class _Heads:
    """Access to the heads of blocks (1, N, lanes), one at a time.

    Attributes:
        width: channels of a head.
        head: index of the present head in the block, traced.
        masked: whether the lanes of other heads are set to 0, instead of left out.
    """

    def __init__(self, width: int, lanes: int, head):
        self.width, self.count, self.head = width, lanes // width, head
        self.masked = self.count > 1 and lanes == LANES

    def own(self, x: Array) -> Array:
        """Set the lanes of other heads to 0, if `x` has them."""
        if not self.masked:
            return x
        return jnp.where(self.lanes(x.shape), x, jnp.zeros((), x.dtype))

    def lanes(self, shape: tuple[int, ...]) -> Array:
        """Return where the lanes of the present head are."""
        lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        return (lane >= self.head * self.width) & (lane < (self.head + 1) * self.width)

    def each(self, function) -> None:
        """Call a function with the lanes of the present head."""
        for i in range(self.count):
            pl.when(self.head == i)(functools.partial(function, slice(i * self.width, (i + 1) * self.width)))

    def load(self, block, scratch):
        """Return the present head as an array that is read by rows; its other lanes are those of other heads."""
        if self.count == 1 or self.masked:
            return block.at[0]

        def copy(lanes):
            scratch[...] = block[0, :, lanes]

        self.each(copy)
        return scratch


def _attend_kernel(*blocks: Any, width: int, rows: int):
    q, k, v, out, log_sums, *scratch = blocks
    heads = _Heads(width, q.shape[2], pl.program_id(2))
    q_copy, k_copy, v_copy, own_out = scratch or [None] * 4
    query, key, value = heads.load(q, q_copy), heads.load(k, k_copy)[...], heads.load(v, v_copy)[...]
    scale, tokens = width**-0.5, q.shape[1]
    chunks = [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]
    following = _product(heads.own(query[chunks[0]]), key, 1, 1)
    for chunk, after in zip(chunks, [*chunks[1:], None]):
        scores = following
        if after is not None:  # the next product keeps the matrix unit busy during this softmax
            following = _product(heads.own(query[after]), key, 1, 1)
        largest = scores.max(axis=1, keepdims=True)
        weights = jnp.exp2((scores - largest) * (scale * _LOG2_E))
        sums = weights.sum(axis=1, keepdims=True)
        result = (_product(weights.astype(value.dtype), value, 1, 0) / sums).astype(out.dtype)
        log_sums[0, 0, :, chunk] = _as_row(largest * scale + jnp.log(sums))
        if scratch:
            own_out[chunk] = result
        elif heads.masked:
            out[0, chunk] = jnp.where(heads.lanes(result.shape), result, out[0, chunk])
        else:
            out[0, chunk] = result

    if scratch:

        def copy(lanes):
            out[0, :, lanes] = own_out[...]

        heads.each(copy)


def _differentiate_kernel(*blocks: Any, width: int, rows: int):
    """Take one head a step, with scores as (keys, queries): the statistics are rows then, which need no transposing.

    The step of the last head writes the gradient of q, and two more steps those of k and v.
    """
    q, k, v, out, d_out, log_sums, gradient, sums, total, *scratch = blocks
    step, scale, tokens = pl.program_id(2), width**-0.5, q.shape[1]
    heads = _Heads(width, q.shape[2], step)
    *copies, own = scratch or [None] * 6
    d_q, d_k, d_v = range(3)

    @pl.when(step == 0)
    def _():
        total[...] = jnp.zeros(total.shape, jnp.float32)

    @pl.when(step < heads.count)
    def _():
        query, key, value, result, d_result = map(heads.load, (q, k, v, out, d_out), copies)
        key, value, target = key[...], value[...], own if scratch else total
        if scratch:
            own[...] = jnp.zeros(own.shape, jnp.float32)

        def differentiate(chunk):
            of_queries, d = heads.own(query[chunk]), heads.own(d_result[chunk])
            product = d.astype(jnp.float32) * result[chunk].astype(jnp.float32)
            delta = product.T.sum(axis=0, keepdims=True)
            exponents = _product(key, of_queries, 1, 1) * (scale * _LOG2_E) - log_sums[0, 0, :, chunk] * _LOG2_E
            weights = jnp.exp2(exponents)  # (keys, queries)
            d_scores = (weights * (_product(value, d, 1, 1) - delta)).astype(of_queries.dtype)
            target[d_v] += _product(weights.astype(d.dtype), d, 1, 0)
            target[d_k] += _product(d_scores, of_queries, 1, 0)
            target[d_q, chunk] += heads.own(_product(d_scores, key, 0, 0))

        whole = tokens // rows
        if whole > 1:
            pl.loop(0, whole)(lambda i: differentiate(pl.ds(pl.multiple_of(i * rows, rows), rows)))
        elif whole:
            differentiate(pl.ds(0, rows))
        if tokens % rows:
            differentiate(pl.ds(whole * rows, tokens % rows))

        if scratch:

            def copy(lanes):
                total[:, :, lanes] = own[...]

            heads.each(copy)

    @pl.when(step >= heads.count - 1)
    def _():
        part = step - (heads.count - 1)
        scaled = total[part] * jnp.where(part == d_v, 1.0, scale)
        gradient[0] = scaled.astype(gradient.dtype)
        sums[0] = scaled.sum(axis=0, keepdims=True)


def attend(rows: Float[Array, "B N 3Hd"], heads: int) -> tuple[Float[Array, "B N Hd"], Float[Array, "B H 1 N"]]:
    """Compute softmax(q k / sqrt(d)) v for each head, and the logarithms of its sums of exp(score), float32.

    Args:
        rows: q, k and v of all heads, each (H, d).
        heads: H.
    """
    batch, tokens, width, lanes, blocks = _blocks(rows, heads)
    each = lanes // width
    log_sums = pl.BlockSpec((1, 1, 1, tokens), lambda clip, block, head: (clip, block * each + head, 0, 0))
    return _call(
        functools.partial(_attend_kernel, width=width, rows=_FORWARD_ROWS),
        rows, rows, rows,
        grid=(batch, blocks, each), in_specs=[_part(rows, heads, i) for i in (0, 1, 2)],
        out_specs=[_part(rows, heads, 0), log_sums],
        out_shape=[
            jax.ShapeDtypeStruct((batch, tokens, heads * width), rows.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, tokens), jnp.float32),
        ],
        scratch_shapes=_copies(4, rows, width, lanes), compiler_params=_parameters(rows, heads),
        cost_estimate=_cost(rows, heads, products=2, arrays=4), name="attention_forward",
    )  # fmt: skip


def differentiate(
    rows: Float[Array, "B N 3Hd"], out: Float[Array, "B N Hd"], log_sums: Array, d_out: Array, heads: int
) -> tuple[Float[Array, "B N 3Hd"], Float[Array, "B 1 3Hd"]]:
    """Compute the gradient of the rows from that of the output, and the sums of the former over the tokens, float32.

    `out` and `log_sums` are what `attend` returned.
    """
    batch, tokens, width, lanes, blocks = _blocks(rows, heads)
    each = lanes // width
    written = lambda block, step: jnp.maximum(step - (each - 1), 0) * blocks + block  # noqa: E731
    return _call(
        functools.partial(_differentiate_kernel, width=width, rows=_BACKWARD_ROWS),
        rows, rows, rows, out, d_out, log_sums,
        grid=(batch, blocks, each + 2),
        in_specs=[
            *(_part(rows, heads, i) for i in (0, 1, 2, 0, 0)),
            pl.BlockSpec(
                (1, 1, 1, tokens), lambda clip, block, step: (clip, block * each + jnp.minimum(step, each - 1), 0, 0)
            ),
        ],
        out_specs=[
            pl.BlockSpec((1, tokens, lanes), lambda clip, block, step: (clip, 0, written(block, step))),
            pl.BlockSpec((1, 1, lanes), lambda clip, block, step: (clip, 0, written(block, step))),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(rows.shape, rows.dtype), jax.ShapeDtypeStruct((batch, 1, rows.shape[2]), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((3, tokens, lanes), jnp.float32), *_copies(5, rows, width, lanes),
            *([pltpu.VMEM((3, tokens, width), jnp.float32)] if _is_copied(width, lanes) else []),
        ],
        compiler_params=_parameters(rows, heads),
        cost_estimate=_cost(rows, heads, products=5, arrays=8), name="attention_backward",
    )  # fmt: skip


def _call(kernel, *operands: Array, **settings) -> Any:
    """Run a kernel. CPUs interpret it, which is slow; the platform is that of the devices that it is compiled for."""
    interpreted, compiled = (pl.pallas_call(kernel, interpret=on, **settings) for on in (True, False))
    return jax.lax.platform_dependent(*operands, cpu=interpreted, default=compiled)


def _blocks(rows: Array, heads: int) -> tuple[int, int, int, int, int]:
    """Return clips, tokens, channels of a head, channels of a block, and the number of blocks."""
    batch, tokens, channels = rows.shape
    width = channels // (3 * heads)
    lanes = block_lanes(heads, width)
    return batch, tokens, width, lanes, heads * width // lanes


def _part(rows: Array, heads: int, part: int) -> pl.BlockSpec:
    """Return the blocks of q, k or v (0, 1, 2) in the rows; those of arrays (B, N, H d) are like those of q."""
    _, tokens, _, lanes, blocks = _blocks(rows, heads)
    return pl.BlockSpec((1, tokens, lanes), lambda clip, block, step: (clip, 0, part * blocks + block))


def _is_copied(width: int, lanes: int) -> bool:
    return lanes not in (width, LANES)


def _copies(count: int, rows: Array, width: int, lanes: int) -> list:
    return [pltpu.VMEM((rows.shape[1], width), rows.dtype)] * count if _is_copied(width, lanes) else []


def _cost(rows: Array, heads: int, products: int, arrays: int) -> pl.CostEstimate:
    """Estimate the cost from the matrix products and the arrays (B, N, H d) that are read or written."""
    batch, tokens, channels = rows.shape
    pairs = batch * tokens**2
    return pl.CostEstimate(
        flops=2 * products * pairs * channels // 3, transcendentals=pairs * heads,
        bytes_accessed=arrays * rows.size // 3 * rows.dtype.itemsize,
    )  # fmt: skip


def _parameters(rows: Array, heads: int) -> pltpu.CompilerParams:
    """Let a kernel use half of a large chip's memory, or what it needs; the rest keeps what XLA prefetches."""
    needed = _needed(rows.shape[1], heads, rows.shape[2] // (3 * heads), rows.dtype)
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=min(max(64 * 2**20, needed * 10 // 9), vmem_bytes()),
    )

"""What preflight counts in the text of a compiled program: loops, FLOPs, bytes and collectives."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tubevit.preflight.costs import collectives, hbm_bytes
from tubevit.preflight.flops import flops
from tubevit.preflight.hlo import Array, Program, arrays

LOOP = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,128]) -> bf16[4,128] {
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=3, replica_groups=[2,16]<=[32], to_apply=%add
  ROOT %part = bf16[4,128]{1,0} dynamic-slice(%all, %all), dynamic_slice_sizes={4,128}
}

%read (stack: f32[10,64,64], i: s32[]) -> f32[64,64] {
  %stack = f32[10,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %layer = f32[1,64,64]{2,1,0} dynamic-slice(%stack, %i), dynamic_slice_sizes={1,64,64}
}

%body (state: (s32[], f32[64,64], f32[10,64,64], bf16[64,128])) -> (s32[], f32[64,64], f32[10,64,64], bf16[64,128]) {
  %state = (s32[]{:T(128)}, f32[64,64]{1,0}, f32[10,64,64]{2,1,0}, bf16[64,128]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%state), index=1
  %layers = f32[10,64,64]{2,1,0} get-tuple-element(%state), index=2
  %rest = bf16[64,128]{1,0} get-tuple-element(%state), index=3
  %slice = f32[64,64]{1,0:T(8,128)S(1)} fusion(%layers, %counter), kind=kLoop, calls=%read
  %y = f32[64,64]{1,0} convolution(%x, %slice), dim_labels=bf_io->bf
  %g = f32[64,256]{1,0} all-gather(%y), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}
  %s = bf16[4,128]{1,0} fusion(%rest), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[], f32[64,64]{1,0}, f32[10,64,64]{2,1,0}, bf16[64,128]{1,0}) tuple(%counter, %y, %layers, %rest)
}

%condition (state: (s32[], f32[64,64], f32[10,64,64], bf16[64,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[64,64]{1,0}, f32[10,64,64]{2,1,0}, bf16[64,128]{1,0}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %ten = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%counter.1, %ten), direction=LT
}

ENTRY %main (p0: f32[64,64], p1: f32[10,64,64], p2: bf16[64,128]) -> f32[64,64] {
  %p0 = f32[64,64]{1,0} parameter(0)
  %p1 = f32[10,64,64]{2,1,0} parameter(1)
  %p2 = bf16[64,128]{1,0} parameter(2)
  %start = s32[]{:T(128)} constant(START)
  %initial = (s32[], f32[64,64]{1,0}, f32[10,64,64]{2,1,0}, bf16[64,128]{1,0}) tuple(%start, %p0, %p1, %p2)
  %loop = (s32[], f32[64,64]{1,0}, f32[10,64,64]{2,1,0}, /*index=3*/bf16[64,128]{1,0}) while(%initial), condition=%condition, body=%body
  %out = f32[64,64]{1,0} get-tuple-element(%loop), index=1
  %begun = f32[64,64]{1,0} all-reduce-start(%out), channel_id=7, replica_groups=mesh['a'=16,'b'=2] {'a','b'}, to_apply=%add
  %ended = f32[64,64]{1,0} all-reduce-done(%begun), channel_id=7
  %half = f32[64,64]{1,0} all-reduce(%ended), channel_id=8, replica_groups=mesh['a'=16], device_ids=([2,8]T(1,0)) {'a':(4)2}
  %token = token[] after-all()
  %sent = (f32[64,64]{1,0}, u32[], token[]) send(%half, %token), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %copy = f32[64,64]{1,0} copy(%half)
}
"""  # noqa: E501


def loop(start=0):
    return Program(LOOP.replace("START", str(start)))


def test_shapes():
    assert arrays("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}, pred[7]{0})") == (
        Array("bf16", (2, 3), 1), Array("s32", ()), Array("pred", (7,)),
    )  # fmt: skip
    assert [a.bytes for a in arrays("(bf16[2,3], f8e4m3fn[4], s4[8], u32[], token[])")] == [12, 4, 4, 4, 0]
    assert Array("bf16", (2, 3), 1).hbm == 0 and Array("bf16", (2, 3)).hbm == 12


@pytest.mark.parametrize("start, trips", [(0, 10), (4, 6)])
def test_loops_are_multiplied(start, trips):
    found = loop(start)
    assert found.entry == "main" and found.unknown_loops == 0
    assert flops(found) == trips * 2 * 64**3 and flops(found, multiply=False) == 2 * 64**3
    outside = 2 * 4 * 64 * 64 * 4  # all-reduces and the copy read and write; what waits and sends does neither
    of_loop = hbm_bytes(found) - hbm_bytes(found, multiply=False)
    # The slice of the stack that is read (its copy lies in VMEM) by the counter, x and y, y and gathered, scattered.
    body = 4 * 64 * 64 + 4 + 2 * 4 * 64 * 64 + 5 * 4 * 64 * 64 + 2 * (64 + 4) * 128
    assert of_loop == (trips - 1) * body and hbm_bytes(found, multiply=False) - body < 2 * outside


def test_a_loop_of_unknown_length_is_told():
    found = Program(LOOP.replace("START", "0").replace("constant(10)", "parameter(0)"))
    assert found.unknown_loops == 1 and flops(found) == 2 * 64**3


def test_collectives_by_channel():
    found = {(c.kind, c.between_slices, c.group): c for c in collectives(loop(), 32)}
    assert {key: (c.bytes, c.times) for key, c in found.items()} == {
        ("all-gather", False, 4): (4 * 64 * 256, 10),
        ("reduce-scatter", False, 16): (2 * 64 * 128, 10),  # TPU writes it as an all-reduce
        ("all-reduce", False, 32): (4 * 64 * 64, 1),  # once, though it begins and ends
        ("all-reduce", False, 2): (4 * 64 * 64, 1),  # a part of an axis
        ("all-reduce", True, 0): (4 * 64 * 64, 1),
    }
    assert found["all-gather", False, 4].sent == 10 * 4 * 64 * 256 * 3 / 4
    assert found["all-reduce", False, 32].sent == 2 * 4 * 64 * 64 * 31 / 32
    assert found["all-reduce", True, 0].sent == 4 * 64 * 64


def test_what_xla_counts():
    """A convolution with padding and stride, and matrix products: the count of XLA's own analysis."""
    image, kernel = jnp.zeros((2, 9, 8, 3)), jnp.zeros((3, 2, 3, 5))
    dims = ("NHWC", "HWIO", "NHWC")

    def convolve(image, kernel):
        pads, dilated = [(1, 1), (0, 2)], (1, 2)
        return jax.lax.conv_general_dilated(image, kernel, (2, 1), pads, lhs_dilation=dilated, dimension_numbers=dims)

    compiled = jax.jit(convolve).lower(image, kernel).compile()
    text = compiled.as_text()
    assert "convolution(" in text
    assert flops(Program(text)) == pytest.approx(compiled.cost_analysis()["flops"], rel=1e-6)

    def layers(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    mesh = jax.make_mesh((8,), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)
    stack = jax.ShapeDtypeStruct((7, 32, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(jax.grad(lambda stack, x: layers(x, stack).sum()))
    found = Program(step.lower(stack, x).compile().as_text())
    # Forward, and two products backward; 8 rows a device.
    assert found.unknown_loops == 0 and flops(found) == 3 * 7 * 2 * 8 * 32 * 32
    reduced = [c for c in collectives(found, 8) if c.kind == "all-reduce"]
    assert sum(c.bytes * c.times for c in reduced) == 4 * 7 * 32 * 32 and {c.group for c in reduced} == {8}

"""Preflight counts cycles, and the bytes of kernels and asynchronous copies, in the texts of a compiler for TPUs."""

import collections
import inspect
import pathlib

import jax
import jax.numpy as jnp
import pytest

from tubevit.preflight.bundles import count_bundles, kernel_bundles
from tubevit.preflight.costliest import costliest, instructions
from tubevit.preflight.costs import bytes_moved, cycles, hbm_bytes
from tubevit.preflight.flops import flops
from tubevit.preflight.hlo import Program

# A grid of 5 steps. The first runs two more bundles, and each has a loop of 3. Four bundles after a branch still run.
BUNDLES = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s1_s0 = smov 0 }
   0x1 LB: > { %s4_s1 = sadd.s32 1, %s3_s0  ;;  %s3_s0 = sphi %s1_s0, %s9_s0 /* phi copy */ } /* Start region 7 */
   0x2   : > { %5 = sst [smem:[#allocation2_spill]] %s4_s1  ;;  %p6_p0 = scmp.ne.s32.totalorder %s3_s0, 0 }
   0x3   : > { %7 = sbr.rel (%p6_p0) target = $region9  ;;  %s17_s5 = sld [smem:[#allocation2_spill]] (!%p6_p0) }
   0x4   : > { %s18_s6 = smov (!%p6_p0, %s4_s1), 3 }
   0x5   :  {}
   0x6   :  {}
   0x7   :  {} /* End region 8 */
   0x8   : > { %v1_v2 = vld [vmem:[%s17_s5] sm:$0xff] }
   0x9   : > { %8 = vst [vmem:[#allocation1] sm:$0xff] /*vst_source=*/%v1_v2 }
   0xa PF: > { %s10_s2 = smov 0 } /* Start/End empty region 9 :: Start region 10 */
   0xb LB: >> { %s11_s2 = sphi %s10_s2, %s12_s2 } /* Start region 11 */
   0xc   : >> { %s12_s2 = sadd.s32 1, %s11_s2 }
   0xd   : >> { %p13_p1 = scmp.ge.s32.totalorder %s12_s2, 3 /* loop exit test */ }
   0xe   : >> { %14 = sbr.rel (!%p13_p1) target = $region11 }
   0xf   :  {}
  0x10   : >> { %v2_v3 = vadd.f32 %v1_v2, %v1_v2 }
  0x11   :  {}
  0x12   :  {} /* End region 11 */
  0x13   : > { %s9_s0 = sld [smem:[#allocation2_spill]] }
  0x14   : > { %p15_p2 = scmp.ge.s32.totalorder %s9_s0, 5 /* loop exit test */ }
  0x15   : > { %16 = sbr.rel (!%p15_p2) target = $region7 }
  0x16   :  {}
  0x17   :  {}
  0x18   :  {}
  0x19   :  {} /* End region 7 */
  0x1a   :  {} /* exit bundle */
"""

KERNEL = 'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"BODY","cost_estimate":{"flops":"1000"}}}'  # noqa: E501
# Three kernels, of which the second is the first again, and the third reads the same array from another memory.
STEP = f"""HloModule step, is_scheduled=true

%start (p: bf16[8,128]) -> (bf16[8,128], bf16[32,128], u32[]) {{
  %p = bf16[8,128]{{1,0}} parameter(0)
  %whole = bf16[32,128]{{1,0}} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={{0}}
  ROOT %begun = (bf16[8,128]{{1,0}}, bf16[32,128]{{1,0}}, u32[]{{:S(2)}}) custom-call(%whole), custom_call_target="AsyncCollectiveStart"
}}

%beside (q: bf16[8,128], r: bf16[32,128], x: f32[16,16], n: f32[4,16,16]) -> (f32[4,16,16], bf16[8,128], bf16[32,128]) {{
  %q = bf16[8,128]{{1,0}} parameter(0)
  %r = bf16[32,128]{{1,0}} parameter(1)
  %x = f32[16,16]{{1,0}} parameter(2)
  %n = f32[4,16,16]{{2,1,0}} parameter(3)
  %again = bf16[32,128]{{1,0}} all-gather(%q), channel_id=1, replica_groups=[1,4]<=[4], dimensions={{0}}
  %layer = f32[1,16,16]{{2,1,0}} reshape(%x)
  %zero = s32[] constant(0)
  %stack = f32[4,16,16]{{2,1,0}} dynamic-update-slice(%n, %layer, %zero, %zero, %zero)
  ROOT %both = (f32[4,16,16]{{2,1,0}}, bf16[8,128]{{1,0}}, bf16[32,128]{{1,0}}) tuple(%stack, %q, %r)
}}

%end (s: bf16[8,128], t: bf16[32,128]) -> bf16[32,128] {{
  %s = bf16[8,128]{{1,0}} parameter(0)
  %t = bf16[32,128]{{1,0}} parameter(1)
  ROOT %done = bf16[32,128]{{1,0}} custom-call(%s, %t), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (a: bf16[4,128], b: bf16[8,128], c: f32[16,16], d: f32[4,16,16]) -> f32[16,16] {{
  %a = bf16[4,128]{{1,0}} parameter(0)
  %b = bf16[8,128]{{1,0}} parameter(1)
  %c = f32[16,16]{{1,0}} parameter(2)
  %d = f32[4,16,16]{{2,1,0}} parameter(3)
  %k.1 = bf16[4,128]{{1,0}} custom-call(%a, %a, %a), {KERNEL}
  %k.2 = bf16[4,128]{{1,0}} custom-call(%k.1, %k.1, %a), {KERNEL}
  %part = ((bf16[4,128]{{1,0}}), bf16[1,128]{{1,0:S(1)}}, s32[]{{:S(2)}}) slice-start(%k.2), slice={{[0:1], [0:128]}}
  %parted = bf16[1,128]{{1,0:S(1)}} slice-done(%part)
  %near = bf16[4,128]{{1,0:S(1)}} custom-call(%parted, %parted, %parted, %parted), custom_call_target="ConcatBitcast"
  %k.3 = bf16[4,128]{{1,0}} custom-call(%near, %near, %near), {KERNEL}
  %gather = (bf16[8,128]{{1,0}}, bf16[32,128]{{1,0}}, u32[]{{:S(2)}}) fusion(%b), kind=kCustom, output_to_operand_aliasing={{{{0}}: (0, {{}})}}, calls=%start
  %g0 = bf16[8,128]{{1,0}} get-tuple-element(%gather), index=0
  %g1 = bf16[32,128]{{1,0}} get-tuple-element(%gather), index=1
  %during = (f32[4,16,16]{{2,1,0}}, bf16[8,128]{{1,0}}, bf16[32,128]{{1,0}}) fusion(%g0, %g1, %c, %d), kind=kOutput, output_to_operand_aliasing={{{{0}}: (3, {{}}), {{1}}: (0, {{}}), {{2}}: (1, {{}})}}, calls=%beside, backend_config={{"window_config":{{"estimated_cycles":"250"}}}}
  %h0 = bf16[8,128]{{1,0}} get-tuple-element(%during), index=1
  %h1 = bf16[32,128]{{1,0}} get-tuple-element(%during), index=2
  %all = bf16[32,128]{{1,0}} fusion(%h0, %h1), kind=kCustom, output_to_operand_aliasing={{{{}}: (1, {{}})}}, calls=%end
  ROOT %out = f32[16,16]{{1,0}} copy(%c), backend_config={{"estimated_cycles":"50"}}
}}
"""  # noqa: E501


def test_bundles_that_run():
    of_step = 7 + 1 + 3 * 8 + 7
    assert count_bundles(BUNDLES) == 1 + 5 * of_step + 2 + 1


def test_bundles_that_depend_on_data():
    """All code runs after an unknown branch; an unknown loop has no count."""
    of_step = 7 + 2 + 1 + 3 * 8 + 7
    assert count_bundles(BUNDLES.replace("%s3_s0, 0 }", "%s99_s9, 0 }")) == 1 + 5 * of_step + 1
    assert count_bundles(BUNDLES.replace("%s12_s2, 3 ", "%s12_s2, %s99_s9 ")) is None


def test_bundles_of_kernels(tmp_path):
    """A kernel that the compiler has dumped once stands for those that are the same."""
    program = Program(STEP)
    (tmp_path / "17-k.1-01-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "17-k.1-00-schedule-analysis_final_bundles.txt").write_text("Schedule analysis:")
    (tmp_path / "17-during-01-final_bundles.txt").write_text(BUNDLES)
    each = count_bundles(BUNDLES)
    found = kernel_bundles(program, tmp_path)
    assert found == {"k.1": each, "k.2": each, "k.3": None}
    assert cycles(program, found) == (250 + 50, 2 * each, 1)


def test_flops_that_kernels_declare():
    assert flops(Program(STEP)) == 3 * 1000


@pytest.mark.parametrize(
    "name, count",
    [
        ("k.1", 2 * 1024),  # read once, though three operands name the array
        ("k.3", 1024),  # its operands are in VMEM
        ("part", 256), ("parted", 0), ("near", 0),  # a slice is read, and then only named
        ("gather", 2048 + 8192), ("all", 0),  # an exchange counts where it starts
        ("during", 1024 + 1024),  # what runs beside it updates a layer in place
        ("out", 2 * 1024),
    ],
)  # fmt: skip
def test_bytes_of_kernels_and_asynchronous_copies(name, count):
    program = Program(STEP)
    main = program.computations["main"]
    assert bytes_moved(main[name], main, program) == count
    assert hbm_bytes(program) == sum(bytes_moved(instruction, main, program) for instruction in main.values())


def product(x, w):
    return jnp.tanh(x @ w)


def test_costliest_instructions():
    """Each product of a step with recomputation, by the line that has it and by direction."""

    def loss(w, x):
        return jax.lax.scan(lambda x, w: (jax.checkpoint(product)(x, w), None), x, w)[0].sum()

    def step(w, x):
        return w - 0.1 * jax.grad(loss)(w, x)

    arguments = jax.ShapeDtypeStruct((7, 64, 64), jnp.float32), jax.ShapeDtypeStruct((8, 64), jnp.float32)
    program = Program(jax.jit(step).lower(*arguments).compile().as_text())
    here = pathlib.Path(__file__)
    entries = instructions(program, {}, here.parent)
    line = inspect.getsourcelines(product)[1] + 1
    times = collections.Counter()
    for entry in entries:
        if entry["source"] == f"{here.name}:{line}" and entry["what"] in ("dot", "fused product"):
            times[entry["direction"]] += entry["times"]
    assert times == {"forward": 7, "recomputed": 7, "backward": 14}
    assert "optimiser" in {entry["direction"] for entry in entries}
    assert sum(entry["bytes"] for entry in entries) == hbm_bytes(program)
    top = costliest(entries, "bytes", 3)
    assert [entry["bytes"] for entry in top] == sorted((entry["bytes"] for entry in entries), reverse=True)[:3]
    assert sum(entry["share"] for entry in costliest(entries, "bytes", len(entries))) == pytest.approx(1)

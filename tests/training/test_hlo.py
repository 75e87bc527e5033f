"""What is counted in the text of a program is what stands there, by hand."""

import pytest

from cryjax.training.hlo import Module

# The forms that XLA writes for a TPU: layouts with tiles, S(1) for on-chip memory, collectives
# combined, started and awaited, in loops, and carried by the fusions that they overlap.
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,128]{1,0})->f32[8,128]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%start (p.1: f32[8,128]) -> (f32[8,128], f32[32,128], u32[]) {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-gather.1 = f32[32,128]{1,0:T(8,128)} all-gather(%p.1), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}, \
metadata={op_name="jit(step)/shard_map/jvp()/all_gather"}
  ROOT %c.1 = (f32[8,128]{1,0}, f32[32,128]{1,0}, u32[]{:S(2)}) custom-call(%p.1, %all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%carry (p.2: f32[8,128]) -> f32[8,128] {
  %p.2 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-gather.2 = f32[32,128]{1,0:T(8,128)} all-gather(%p.2), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %n = f32[8,128]{1,0:T(8,128)} negate(%p.2)
}

%convolve (x: bf16[2,10,7,3], k: bf16[3,3,3,5]) -> bf16[2,10,7,5] {
  %x = bf16[2,10,7,3]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[3,3,3,5]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %conv = bf16[2,10,7,5]{3,2,1,0:T(8,128)(2,1)} convolution(%x, %k), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%turn (t: (s32[], f32[256])) -> (s32[], f32[256]) {
  %t = (s32[]{:T(128)}, f32[256]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %v = f32[256]{0:T(256)} get-tuple-element(%t), index=1
  %all-reduce.3 = f32[256]{0:T(256)} all-reduce(%v), replica_groups=[2,2]<=[4], to_apply=%add, \
metadata={op_name="jit(step)/shard_map/transpose(jvp(Encoder))/norm0/psum"}
  ROOT %next = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%i, %all-reduce.3)
}

%more (t.2: (s32[], f32[256])) -> pred[] {
  %t.2 = (s32[]{:T(128)}, f32[256]{0:T(256)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%t.2), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%j, %three), direction=LT
}

ENTRY %main (p0: f32[8,128], p1: bf16[2,10,7,3], p2: bf16[3,3,3,5], p3: bf16[4,6]) -> f32[8,128] {
  %p0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[2,10,7,3]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %p2 = bf16[3,3,3,5]{3,2,1,0:T(8,128)(2,1)} parameter(2)
  %p3 = bf16[4,6]{1,0:T(8,128)(2,1)S(1)} parameter(3)
  %f.1 = (f32[8,128]{1,0:S(1)}, f32[32,128]{1,0:S(1)}, u32[]{:S(2)}) fusion(%p0), kind=kCustom, \
calls=%start
  %f.2 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%p0), kind=kCustom, calls=%carry
  %f.3 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%f.2), kind=kCustom, calls=%carry
  %copy-start.1 = (bf16[3,3,3,5]{3,2,1,0:S(1)}, bf16[3,3,3,5]{3,2,1,0}, u32[]{:S(2)}) \
copy-start(%p2)
  %copy-done.1 = bf16[3,3,3,5]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %f.4 = bf16[2,10,7,5]{3,2,1,0:T(8,128)(2,1)} fusion(%p1, %copy-done.1), kind=kOutput, \
calls=%convolve
  %product = f32[4,4]{1,0:T(8,128)S(1)} convolution(%p3, %p3), dim_labels=bf_oi->bf
  %all-reduce-start.1 = (f32[4,4]{1,0:S(1)}, /*index=1*/bf16[4,6]{1,0:S(1)}) \
all-reduce-start(%product, %p3), channel_id=2, replica_groups={}, to_apply=%add
  %all-reduce-done.1 = (f32[4,4]{1,0:S(1)}, bf16[4,6]{1,0:S(1)}) \
all-reduce-done(%all-reduce-start.1)
  %zero = s32[]{:T(128)} constant(0)
  %row = f32[256]{0:T(256)S(1)} reduce(%f.3, %f.3), dimensions={0}, to_apply=%add
  %init = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%zero, %row)
  %loop = (s32[]{:T(128)}, f32[256]{0:T(256)}) while(%init), condition=%more, body=%turn
  ROOT %out = f32[8,128]{1,0:T(8,128)} negate(%f.3)
}
"""


@pytest.fixture(scope="module")
def module():
    return Module(TEXT, 4)


def test_collectives(module):
    gather, loop, combined = module.collectives
    assert (gather.kind, gather.arrays, gather.bytes, gather.times) == ("all-gather", 1, 4096, 1)
    assert gather.group == 4 and gather.origin == "all_gather"
    assert (loop.kind, loop.bytes, loop.group, loop.times) == ("all-reduce", 1024, 2, 3)
    assert loop.origin == "Encoder/norm0/psum, backward"
    assert (combined.kind, combined.arrays, combined.bytes) == ("all-reduce", 2, 64 + 48)
    assert (combined.group, combined.times, combined.origin) == (4, 1, "")


def test_turns_of_a_loop(module, caplog):
    """By XLA's count where it gives one; a loop of unknown length is warned about."""
    told = ', backend_config={"known_trip_count":{"n":"7"}}'
    known = Module(TEXT.replace("body=%turn", "body=%turn" + told), 4)
    assert [found.times for found in known.collectives] == [1, 7, 1]
    assert not caplog.text
    unknown = Module(TEXT.replace("constant(3)", "parameter(1)"), 4)
    assert [found.times for found in unknown.collectives] == [1, 1, 1]
    assert "the loop loop has no known length" in caplog.text


def test_bytes_sent(module):
    gather, loop, combined = module.collectives
    assert gather.sent == 3 * 4096  # its own part to each of three others, or theirs passed on
    assert loop.sent == 3 * 2 * 1024 / 2  # three turns in pairs
    assert combined.sent == 2 * 112 * 3 / 4


def test_operations(module):
    # 10 rows of 3 taps, less the two that lie outside; 7 columns likewise.
    convolution = 2 * 2 * 5 * 3 * (3 * 10 - 2) * (3 * 7 - 2)
    assert module.operations == convolution + 2 * 4 * 4 * 6


def test_traffic_leaves_the_chip_out(module):
    gathered = 4096  # read; the results stay on the chip
    carried = 4096
    copied = 3 * 3 * 3 * 5 * 2
    convolved = (2 * 10 * 7 * 3 + 2 * 10 * 7 * 5) * 2  # the kernel is on the chip
    # Three turns of an all-reduce that reads and writes 1024 bytes; the comparison of its counter.
    loop = 3 * 2 * 1024 + 4 + 4 + 1
    assert module.traffic == gathered + carried + copied + convolved + loop + 4096


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        ("size=3x1 pad=1_1x0_0", 3 * 6 - 2),
        ("size=3x1 stride=2x1 pad=0_1x0_0", 3 * 3 - 1),
        ("size=3x1 pad=2_2x0_0 rhs_dilate=2x1", 3 * 6 - 4),
        ("size=3x1 pad=1_1x0_0 lhs_dilate=2x1", 16),
    ],
)
def test_convolutions_touch_no_padding(window, rows):
    out = {"lhs": 11, "str": 3}.get(next((k for k in ("lhs", "str") if k in window), ""), 6)
    text = f"""
ENTRY %main (x: f32[1,6,1,1], k: f32[3,1,1,1]) -> f32[1,{out},1,1] {{
  %x = f32[1,6,1,1]{{3,2,1,0}} parameter(0)
  %k = f32[3,1,1,1]{{3,2,1,0}} parameter(1)
  ROOT %c = f32[1,{out},1,1]{{3,2,1,0}} convolution(%x, %k), window={{{window}}}, \
dim_labels=b01f_01io->b01f
}}
"""
    assert Module(text, 1).operations == 2 * rows

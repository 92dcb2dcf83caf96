"""Costs from the text of a compiled program."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from jopd import sharding
from jopd.plan import hlo

DEPTH, ROWS, WIDTH = 6, 32, 256


def _text(function, *args):
  return jax.jit(function).lower(*args).compile().as_text()


def _layers(x, weights):
  step = lambda x, w: (jnp.tanh(x @ w), None)
  return jax.lax.scan(step, x, weights)[0]


# Kills: a loop whose bytes count once.
def test_traffic_of_a_loop_grows_with_its_turns():
  x = jnp.zeros((ROWS, WIDTH))
  of = lambda n: hlo.cost(_text(_layers, x, jnp.zeros((n, WIDTH, WIDTH))))
  layer = (of(3 * DEPTH).traffic - of(DEPTH).traffic) / (2 * DEPTH)
  # The weight, which a CPU cuts out first, and activations of small passes.
  least = 4 * WIDTH * (WIDTH + 2 * ROWS)
  assert least <= layer <= 3 * least


def test_turns_are_asked_for_where_the_data_decides_them():
  def run(w, n):
    body = lambda state: (state[0] + 1, state[1] @ w)
    return jax.lax.while_loop(lambda s: s[0] < n, body, (0, w))[1]

  text = _text(run, jnp.zeros((WIDTH, WIDTH)), 3)
  one, four = hlo.cost(text), hlo.cost(text, turns=4)
  product = 3 * 4 * WIDTH**2
  assert four.traffic - one.traffic >= 3 * product


# Kills: collectives inside of loops that count once, and devices miscounted.
def test_collectives_are_found_with_their_devices_and_bytes():
  mesh = sharding.make_mesh(2, 4, 1)
  put = lambda shape, *spec: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )
  weights = put((DEPTH, WIDTH, WIDTH), None, 'fsdp')
  x = put((ROWS, WIDTH), ('data', 'fsdp'))

  def run(x, weights):
    pin = sharding.constrain_batch(mesh)
    step = lambda x, w: (pin(jnp.tanh(x @ w)), None)
    return jax.lax.scan(step, x, weights)[0]

  found = hlo.cost(_text(run, x, weights)).collectives
  assert found == {('all-gather', 4): DEPTH * 4 * WIDTH**2}


TPU = """
HloModule jit_f

%condition (param: (s32[], bf16[8,128])) -> pred[] {
  %n = s32[]{:T(128)} constant(28)
  %param = (s32[], bf16[8,128]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%param), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (arg: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %arg = (s32[], bf16[8,128]) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %fast = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy(%x), CYCLES"100"}
  %slow = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%fast), CYCLES"10"}
  ROOT %out = (s32[], bf16[8,128]) tuple(%j, %slow)
}

ENTRY %main (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[], bf16[8,128]) parameter(0)
  ROOT %while = (s32[], bf16[8,128]) while(%p), condition=%condition, body=%body
}
"""


# Kills: bytes of the fast memory taken for those of the large one, and cycles
# of a loop counted once. The text is as the TPU compiler writes it.
def test_a_tpu_program_is_read_with_its_memories_and_cycles():
  cost = hlo.cost(TPU.replace('CYCLES', 'backend_config={"estimated_cycles":'))
  assert cost.traffic == 28 * (2 * 8 * 128 + 2 * 8 * 128)
  assert cost.cycles == 28 * 110
  assert cost.collectives == {}


@pytest.mark.parametrize(
  ('groups', 'devices'),
  [
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}", 4),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 2),
    ('replica_groups=[2,8]<=[16]', 8),
    ('replica_groups={{0,1,2},{3,4,5}}', 3),
  ],
)
def test_every_spelling_of_groups_is_read(groups, devices):
  line = f'  %g = f32[6]{{0}} all-gather(%x), channel_id=1, {groups}'
  body = hlo.parse(f'%c (x: f32[2]) -> f32[6] {{\n{line}\n}}\n')['%c']
  assert hlo.collective(body['%g']) == ('all-gather', devices, 24)

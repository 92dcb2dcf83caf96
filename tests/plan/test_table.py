"""A plan on paper: what fits, what it takes, what to change."""

import json

import pytest

from jopd.plan import hlo, table
from jopd.plan.chips import CHIPS, Chip
from jopd.plan.plan import RunPlan, StagePlan
from jopd.plan.program import Phase

GIB = 2**30
CHIP = Chip('test', 10 * GIB, flops=1e12, bandwidth=1e9, links=1e8, clock=1e6)


def _phase(name='learner', **changes):
  kinds = dict(held=1.0, inputs=1.0, results=0.0, temporaries=2.0)
  kinds |= changes.pop('memory', {})
  return Phase(
    name=name,
    times=changes.pop('times', 1),
    memory={kind: x * GIB for kind, x in kinds.items()},
    flops=changes.pop('flops', 4e12),
    kernels=changes.pop('kernels', 0.0),
    useful=changes.pop('useful', 3e12),
    least=changes.pop('least', None),
    cost=hlo.Cost(**dict(traffic=1e9, cycles=0.0, collectives={}) | changes),
    seconds=1.0,
  )


def _run(*phases, refused=None, chip=CHIP):
  stage = StagePlan('distil', 8, 16, list(phases), refused)
  return RunPlan(chip, 4, dict(data=4, fsdp=1, tensor=1), [stage])


# Kills: a device's share of operations forgotten, and a bound left out.
@pytest.mark.parametrize(
  ('changes', 'least', 'most'),
  [
    ({}, 1.0, 1.0),  # 4e12 operations on 4 devices of 1e12 a second
    (dict(traffic=3e9), 3.0, 3.0),
    (dict(cycles=5e6), 5.0, 5.0),
    (dict(cycles=5e6, kernels=8e12), 7.0, 7.0),
    (dict(times=3), 3.0, 3.0),
    (dict(collectives={('all-gather', 4): 4e7}), 1.0, 1.3),
    (dict(collectives={('all-reduce', 4): 4e8}), 6.0, 7.0),
    (dict(collectives={('reduce-scatter', 4): 1e8}), 3.0, 4.0),
  ],
)
def test_time_is_bound_by_the_slowest(changes, least, most):
  found = table.time(_phase(**changes), CHIP, 4)
  assert found == pytest.approx((least, most))


def test_without_cycles_operations_and_bytes_decide():
  chip = CHIP._replace(clock=None)
  assert table.time(_phase(cycles=5e6), chip, 4).least == pytest.approx(1.0)


@pytest.mark.parametrize(
  ('temporaries', 'status'), [(6.9, 'ok'), (7.5, 'warn'), (8.1, 'refuse')]
)
def test_a_tenth_of_the_memory_is_to_spare(temporaries, status):
  phase = _phase(memory=dict(temporaries=temporaries))
  assert table.status(_run(_phase('teacher'), phase)) == status


# Kills: advice on something that is not the reason.
@pytest.mark.parametrize(
  ('name', 'kind', 'advice'),
  [
    ('learner', 'temporaries', 'config.distil.gradient_accumulation_steps'),
    ('decode', 'inputs', 'config.distil.max_num_seqs'),
    ('learner', 'held', 'config.mesh.fsdp'),
    ('prefill', 'temporaries', 'config.distil.batch_size'),
  ],
)
def test_what_is_largest_is_to_be_changed(name, kind, advice):
  found = _run(_phase(name, memory={kind: 9.5}))
  (fix,) = table.fixes(found.stages[0], CHIP)
  assert fix.startswith(advice)
  assert f'change   {advice}' in table.page(found)


def test_what_the_compiler_refuses_does_not_fit():
  found = _run(refused=('learner', 'Used 20G of 15G hbm'))
  assert table.status(found) == 'refuse'
  text = table.page(found)
  assert 'Used 20G of 15G hbm' in text and text.endswith('does not fit')
  assert 'config.distil.gradient_accumulation_steps' in text


def test_an_unknown_chip_has_memory_but_no_seconds():
  text = table.page(_run(_phase(), chip=None))
  assert text.endswith('compiles') and 'a step takes' not in text


def test_decoding_is_held_against_the_bandwidth_and_the_rest_against_products():
  decode = _phase('decode', times=10, least=5e8, flops=0.0)
  text = table.page(_run(decode, _phase()))
  row = lambda name: next(x for x in text.splitlines() if f' {name} ' in x)
  assert row('decode').endswith('50%') and row('learner').endswith('75%')


def test_json_holds_what_the_page_says():
  phase = _phase(collectives={('all-gather', 4): 8.0})
  found = json.loads(table.as_json(_run(phase)))
  (stage,) = found['stages']
  (learner,) = stage['phases']
  assert found['status'] == 'ok' and found['chip']['name'] == 'test'
  assert learner['memory_total'] == 4 * GIB
  assert learner['cost']['collectives'] == [
    dict(kind='all-gather', devices=4, bytes=8.0)
  ]
  assert learner['estimate']['least'] == pytest.approx(1.0)


# Kills: a clock that does not go with the peak: flops in a cycle are those of
# whole matrix units, 128 x 128 or 256 x 256 multiplications and additions.
@pytest.mark.parametrize('name', ['v4', 'v5e', 'v5p', 'v6e'])
def test_clock_and_peak_of_a_tpu_agree(name):
  units = CHIPS[name].flops / CHIPS[name].clock / (2 * 128 * 128)
  assert units == pytest.approx(round(units), rel=0.01)

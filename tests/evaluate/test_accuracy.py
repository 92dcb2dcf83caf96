"""Accuracies against scripted responses, and of one model in several ways."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import rewards, sharding
from jopd.data.batching import PromptBatch
from jopd.data.examples import Example
from jopd.evaluate.accuracy import make_evaluate, statistics
from jopd.models.decoder import DecoderConfig, make_model
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.rollout.engine import make_generate
from jopd.rollout.sampler import Rollout
from jopd.rollout.stop_criteria import make_stops

LIMIT = 4  # slots of a response
RIGHT, WRONG = 1, 2  # tokens


class Words:
  """A tokenizer whose text is its ids."""

  def batch_decode(self, rows, skip_special_tokens):
    assert skip_special_tokens
    return [' '.join(map(str, row)) for row in rows]


def make_prompts(count):
  """Prompt i is the token i."""
  return PromptBatch(
    ids=[str(i) for i in range(count)],
    prompt=np.arange(count, dtype=np.int32)[:, None],
    prompt_length=np.ones(count, np.int32),
    response=np.zeros((count, 0), np.int32),
    response_length=np.zeros(count, np.int32),
    examples=[Example(str(i), [], answer=str(RIGHT)) for i in range(count)],
    messages=[[]] * count,
  )


class Script:
  """Answer number g to prompt i is `answers[g][i]`; keeps what it was asked."""

  def __init__(self, answers, lengths=None):
    self.answers, self.calls = np.array(answers), []
    self.lengths = lengths or [1] * len(answers[0])

  def __call__(self, params, prompt, prompt_length, key, **settings):
    self.calls.append((len(prompt), settings))
    answers = self.answers[:, prompt[:, 0]].T.flatten()
    rows = np.repeat(prompt[:, 0], len(self.answers))
    response = np.zeros((len(rows), LIMIT), np.int32)
    response[:, 0] = answers
    length = np.array([self.lengths[row] for row in rows], np.int32)
    rollout = Rollout(
      *(rows[:, None], np.ones_like(rows), response, length),
      *(np.zeros((len(rows), LIMIT), np.float32),) * 2,
      end_reason=np.where(length < LIMIT, STOP, LENGTH),
      slot_steps=np.int32(0),
    )
    return jax.tree.map(jnp.asarray, rollout)


def evaluate(script, count, *, batch_size, samples, **settings):
  run = make_evaluate(
    script,
    Words(),
    lambda response, example: rewards.Reward(
      float(response.text.split()[0] == example.answer)
    ),
    make_prompts(count),
    batch_size=batch_size,
    samples=samples,
    **settings,
  )
  return run({}, jax.random.key(0))


def test_greedy_accuracy_by_hand():
  # 3 of 4 right. Wilson, z = 1.96, z^2 = 3.8416:
  # centre (0.75 + 3.8416 / 8) / (1 + 3.8416 / 4) = 0.62752
  # half 1.96 sqrt(0.1875 / 4 + 3.8416 / 64) / 1.9604 = 0.32689
  # Kills: the normal interval, whose upper end is above 1.
  result = evaluate(
    Script([[RIGHT, WRONG, RIGHT, RIGHT]], lengths=[1, 2, 3, LIMIT]),
    4,
    **dict(batch_size=2, samples=0),
  )
  assert result == {
    'prompts': 4,
    'greedy_accuracy': 0.75,
    'greedy_accuracy_low': pytest.approx(0.30064, abs=1e-5),
    'greedy_accuracy_high': pytest.approx(0.95441, abs=1e-5),
    'response_length': 2.5,
    'truncated': 0.25,
  }


def test_rows_that_fill_the_last_batch_do_not_count():
  # Five prompts in batches of four: three rows are repeats of the first ones,
  # which are right. Kills: 2 of 5 counted as 5 of 8, and a shorter last batch.
  script = Script([[RIGHT, RIGHT, WRONG, WRONG, WRONG]])
  result = evaluate(script, 5, batch_size=4, samples=0)
  assert [prompts for prompts, _ in script.calls] == [8]
  assert result['greedy_accuracy'] == 0.4 and result['prompts'] == 5


def test_fewer_prompts_than_a_batch_are_repeated():
  # Kills: filling up with each prompt at most once more.
  script = Script([[RIGHT, WRONG]])
  result = evaluate(script, 2, batch_size=8, samples=0)
  assert [prompts for prompts, _ in script.calls] == [8]
  assert result['greedy_accuracy'] == 0.5


# Four batches of rows wait for two slots, and no call is much shorter than the
# others: 10 prompts are 6 and 4 that are filled up, not 8 and 2. With a group
# of 4 a batch of prompts is enough. Kills: calls of batch_size rows, in which
# short answers wait for the longest, and all prompts in one call.
@pytest.mark.parametrize(
  'samples, sizes', [(0, [6, 6]), (1, [4] * 3), (3, [2] * 5), (9, [2] * 5)]
)
def test_a_call_asks_for_more_rows_than_are_decoded_at_once(samples, sizes):
  script = Script([[RIGHT] * 10] * (1 + samples))
  evaluate(script, 10, batch_size=2, samples=samples)
  assert [prompts for prompts, _ in script.calls] == sizes
  firsts = [settings['first_row'] for _, settings in script.calls]
  assert firsts == [sizes[0] * (1 + samples) * n for n in range(len(sizes))]


def test_samples_give_avg_and_pass_at_k():
  # Right samples of four per prompt: 2, 0, 4. avg@4 = (1/2 + 0 + 1) / 3 = 1/2.
  # pass@2 = (1 - C(2,2)/C(4,2), 0, 1) = (5/6, 0, 1), mean 11/18.
  # Kills: greedy counted among the samples, and the biased 1 - (1 - c/n)^2 =
  # 3/4 for the first prompt.
  greedy = [WRONG, WRONG, WRONG]
  columns = [[RIGHT, RIGHT, WRONG, WRONG], [WRONG] * 4, [RIGHT] * 4]
  script = Script([greedy, *np.transpose(columns)])
  result = evaluate(script, 3, batch_size=3, samples=4, temperature=0.7)
  assert result['greedy_accuracy'] == 0
  assert result['avg_at_4'] == pytest.approx(1 / 2)
  assert result['avg_at_4_low'] < 1 / 2 < result['avg_at_4_high']
  assert result['pass_at_1'] == pytest.approx(1 / 2)
  assert result['pass_at_2'] == pytest.approx(11 / 18)
  assert result['pass_at_4'] == pytest.approx(2 / 3)


def test_each_pass_at_k_has_an_interval_and_n_is_among_them():
  # Three samples: k = 1, 2 and 3. Prompts are right in 3, 0 and 1 of them.
  # pass@2 = (1, 0, 1 - C(2,2)/C(3,2)) = (1, 0, 2/3), mean 5/9.
  # Kills: powers of two alone, which leave out pass@n, and samples taken for
  # independent trials: with 9 instead of about 3 the interval is narrower.
  columns = [[RIGHT] * 3, [WRONG] * 3, [RIGHT, WRONG, WRONG]]
  script = Script([[WRONG] * 3, *np.transpose(columns)])
  result = evaluate(script, 3, batch_size=3, samples=3)
  passes = [n for n in result if n.startswith('pass_at_') and n[-1].isdigit()]
  assert passes == ['pass_at_1', 'pass_at_2', 'pass_at_3']
  assert result['pass_at_2'] == pytest.approx(5 / 9)
  _, low, high = statistics.mean_interval([1, 0, 2 / 3])
  assert result['pass_at_2_low'] == pytest.approx(low)
  assert result['pass_at_2_high'] == pytest.approx(high)
  assert high - low > np.diff(statistics.wilson_interval(5, 9)).item()


def test_every_answer_is_recorded_once():
  # Three prompts in calls of two: one row repeats the first prompt. Kills:
  # answers of such rows, and samples that take another prompt's name.
  script = Script([[RIGHT, WRONG, WRONG], [WRONG, WRONG, RIGHT]], [1, 2, LIMIT])
  rows = []
  evaluate(script, 3, batch_size=2, samples=1, record=rows.append)
  assert [(row['id'], row['sample'], row['reward']) for row in rows] == [
    *(('0', 0, 1.0), ('0', 1, 0.0), ('1', 0, 0.0)),
    *(('1', 1, 0.0), ('2', 0, 0.0), ('2', 1, 1.0)),
  ]
  assert [row['response_length'] for row in rows[::2]] == [1, 2, LIMIT]
  assert [row['truncated'] for row in rows[::2]] == [False, False, True]
  assert rows[0]['text'].split()[0] == str(RIGHT)


def test_the_first_answer_is_greedy_and_the_others_are_sampled():
  # Kills: settings of samples for the greedy answer, and in another order.
  script = Script([[RIGHT, WRONG]] * 3)
  evaluate(script, 2, batch_size=2, samples=2, temperature=0.7, top_p=0.9)
  [(_, settings)] = script.calls
  np.testing.assert_array_equal(settings['temperature'], [0, 0.7, 0.7] * 2)
  assert settings['top_p'] == 0.9


MODEL = make_model(
  DecoderConfig(
    vocab_size=31,
    layers=1,
    embed=16,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp=16,
    qk_norm=True,
    init_scale=0.3,
  )
)


def respond(batch_size, devices):
  """The result of 9 prompts, 3 answers each, and (prompt, text) as graded."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices], data=-1)
  params = MODEL.init(jax.random.key(0))
  shardings = sharding.param_shardings(mesh, MODEL.axes, params)
  generate = make_generate(
    MODEL, mesh, max_new_tokens=8, group_size=3, max_num_seqs=batch_size
  )
  graded = []

  def grade(response, example):
    graded.append((example.id, response.text))
    return rewards.Reward(float(len(response.text.split()) % 2))

  run = make_evaluate(
    partial(generate, stops=make_stops(range(8))),
    Words(),
    grade,
    make_prompts(9),
    **dict(batch_size=batch_size, samples=2, temperature=1.5),
  )
  return run(jax.device_put(params, shardings), jax.random.key(0)), graded[:27]


def test_the_numbers_do_not_depend_on_the_batch_size():
  # Kills: keys by the place in a call, which change with batch_size, with the
  # prompts that fill a call up, and with the devices.
  result, graded = respond(16, 1)
  assert 0 < result['avg_at_2'] < 1
  assert len(set(graded)) > 20  # samples of a prompt differ
  assert [i for i, _ in graded] == [str(i) for i in range(9) for _ in range(3)]
  for batch_size, devices in ((2, 1), (8, 8)):
    assert respond(batch_size, devices) == (result, graded)


def test_only_a_full_reward_counts_as_right():
  # Kills: the mean of the rewards as accuracy.
  run = make_evaluate(
    Script([[RIGHT, RIGHT]]),
    Words(),
    lambda response, example: rewards.Reward(0.5),
    make_prompts(2),
    **dict(batch_size=2, samples=0),
  )
  assert run({}, jax.random.key(0))['greedy_accuracy'] == 0

"""Batches and the resumable order they come in."""

import itertools
import json
import logging

import numpy as np
import pytest

from jopd.data import batching, contexts, prompts, sources, tokenizer
from jopd.data.examples import Example, Unfit


@pytest.fixture(scope='module')
def tok():
  return tokenizer.builtin_tokenizer()


def _source(count, *, response=True):
  return [
    Example(
      f'n{i}',
      [{'role': 'user', 'content': '7 ' * (i % 5) + str(i)}],
      str(i),
      f'{i} #### {i}' if response and i % 3 else None,
    )
    for i in range(count)
  ]


def _make(source, tok, **settings):
  settings = {'max_prompt_tokens': 24, 'max_response_tokens': 12} | settings
  return batching.make_iterator(source, tok, **settings)


def _ids(iterator, batches):
  return [batch.ids for batch in itertools.islice(iterator, batches)]


def _flat(lists):
  return list(itertools.chain.from_iterable(lists))


def test_each_epoch_has_every_example_once_in_an_order_of_its_own(tok):
  # Batches run over the edge of an epoch. Kills: a last partial batch that is
  # dropped or padded, an order that repeats, a shuffle with replacement.
  noise = np.random.default_rng(0)
  for trial in range(20):
    count, size = noise.integers(1, 40), int(noise.integers(1, 12))
    iterator = _make(_source(count), tok, batch_size=size, seed=trial)
    stream = _flat(_ids(iterator, -(-3 * count // size)))
    epochs = [stream[i * count : (i + 1) * count] for i in range(3)]
    for epoch in epochs:
      assert sorted(epoch) == sorted(f'n{i}' for i in range(count))
    if count > 8:
      assert epochs[0] != epochs[1] != epochs[2]
      assert epochs[0] != [f'n{i}' for i in range(count)]


def test_the_order_is_a_function_of_the_seed(tok):
  one, same, other = (
    _ids(_make(_source(30), tok, batch_size=4, seed=seed), 20)
    for seed in (3, 3, 4)
  )
  assert one == same != other
  plain = _make(_source(5), tok, batch_size=3, shuffle=False)
  assert _ids(plain, 2) == [['n0', 'n1', 'n2'], ['n3', 'n4', 'n0']]


def test_every_batch_has_one_shape_and_holds_the_texts(tok):
  # Kills: padding on the left, a length without the stop token, a shape that
  # follows the longest row (each new shape compiles again).
  source = _source(25)
  for batch in itertools.islice(_make(source, tok, batch_size=4), 20):
    assert batch.prompt.shape == (4, 24) and batch.response.shape == (4, 12)
    for name, example in zip(batch.ids, batch.examples, strict=True):
      assert example == source[int(name[1:])]
    for array in batch[1:5]:
      assert array.dtype == np.int32
    for row, example in enumerate(batch.examples):
      kept = batch.prompt[row, : batch.prompt_length[row]]
      assert kept.tolist() == prompts.encode_prompt(tok, example.messages)
      assert not batch.prompt[row, batch.prompt_length[row] :].any()
      kept = batch.response[row, : batch.response_length[row]]
      text = example.response
      assert tok.decode(kept) == (f'{text}<|im_end|>' if text else '')
      assert not batch.response[row, batch.response_length[row] :].any()


def test_a_fresh_iterator_resumes_exactly(tok):
  # The state goes through JSON, as in a checkpoint, at every point of three
  # epochs. Kills: a state that runs ahead with a prefetch, or forgets the
  # epoch and with it the order.
  settings = {'batch_size': 4, 'seed': 9}
  whole = _ids(_make(_source(10), tok, **settings), 12)
  iterator = _make(_source(10), tok, **settings)
  for done in range(8):
    state = json.loads(json.dumps(iterator.get_state()))
    fresh = _make(_source(10), tok, **settings)
    fresh.set_state(state)
    assert _ids(fresh, 4) == whole[done : done + 4]
    assert next(iterator).ids == whole[done]
  # Back in time, on an iterator already in use.
  iterator.set_state(state)
  assert next(iterator).ids == whole[7]


def test_processes_share_one_order_whatever_their_number(tok):
  # Kills: each process shuffling a shard of its own, so that four hosts train
  # on other batches than one.
  settings = {'batch_size': 4, 'seed': 1}
  whole = _ids(_make(_source(11), tok, **settings), 8)
  for process_count in (2, 4):
    parts = [
      _make(
        _source(11),
        tok,
        **settings,
        process_index=index,
        process_count=process_count,
      )
      for index in range(process_count)
    ]
    assert [_flat(next(p).ids for p in parts) for _ in range(5)] == whole[:5]
    # And one process goes on where several stopped.
    alone = _make(_source(11), tok, **settings)
    alone.set_state(parts[-1].get_state())
    assert _ids(alone, 3) == whole[5:]


@pytest.mark.parametrize(
  'change, named',
  [
    ({'batch_size': 2}, 'batch_size'),
    ({'seed': 2}, 'seed'),
    ({'shuffle': False}, 'seed'),
    ({'source': _source(11)}, 'data'),
    ({'source': _source(10)[::-1]}, 'data'),
    ({'source': _source(10, response=False)}, 'data'),
  ],
)
def test_a_state_of_other_data_is_refused(tok, change, named):
  # Kills: going on in silence with other examples than the saved run's.
  settings = {'source': _source(10), 'batch_size': 4, 'seed': 1}
  state = _make(tok=tok, **settings).get_state()
  other = _make(tok=tok, **(settings | change))
  with pytest.raises(ValueError, match=f'another {named}: .*start anew'):
    other.set_state(state)


def test_an_example_that_does_not_fit_stops_the_run_at_the_start(tok):
  # n4 is the first with four sevens: 3 + (4 + 1) + 5 = 13 tokens.
  with pytest.raises(
    ValueError, match=r'2 of 10 examples do not fit .*=12 .* n4 has 13 and'
  ):
    _make(_source(10), tok, batch_size=2, max_prompt_tokens=12)
  # Kills: a limit that forgets the stop token: '1 #### 1' needs 4 places.
  with pytest.raises(ValueError, match='n1 has 10 and 4, the longest'):
    _make(_source(3), tok, batch_size=1, max_response_tokens=3)
  assert _make(_source(3), tok, batch_size=1, max_response_tokens=4)


def test_dropped_examples_are_logged_and_never_come(tok, caplog):
  caplog.set_level(logging.WARNING)
  left_out = {}
  reject = left_out.__setitem__
  settings = {'max_prompt_tokens': 12, 'reject': reject}
  iterator = _make(_source(10), tok, batch_size=8, **settings)
  # Kills: examples found by their place among the kept ones.
  assert sorted(next(iterator).ids) == [f'n{i}' for i in range(10) if i % 5 < 4]
  assert '2 of 10 examples do not fit' in caplog.text
  assert set(left_out) == {4, 9} and type(left_out[4]) is Unfit
  with pytest.raises(ValueError, match='10 of 10 examples do not fit'):
    _make(_source(10), tok, batch_size=8, **settings | {'max_prompt_tokens': 2})


def test_demonstrations_are_not_read_when_none_are_asked_for(tok):
  # Kills: an overlong demonstration that stops a run which never uses it.
  source = [_source(1)[0]._replace(response='3 ' * 500)]
  batch = next(_make(source, tok, batch_size=2, max_response_tokens=0))
  assert batch.response.shape == (2, 0)
  assert batch.response_length.tolist() == [0, 0]


def test_a_batch_can_be_encoded_under_another_context(tok):
  # The teacher's prompts: same rows, same order, other text before.
  batch = next(_make(_source(9), tok, batch_size=4))
  teacher = batching.encode_batch(
    batch.examples,
    tok,
    max_prompt_tokens=64,
    context=lambda e: contexts.with_system(e, prompt=f'It is {e.answer}.'),
  )
  assert teacher.ids == batch.ids
  for row, example in enumerate(batch.examples):
    length = teacher.prompt_length[row]
    text = tok.decode(teacher.prompt[row, :length])
    assert text.startswith(f'<|im_start|>system\nIt is {example.answer}.')
    own = batch.prompt[row, : batch.prompt_length[row]]
    assert text.endswith(tok.decode(own))
    # Kills: the messages of the student, which a reward would then read.
    assert teacher.messages[row][0]['role'] == 'system'
    assert batch.messages[row] == example.messages
  with pytest.raises(ValueError, match='4 of 4 examples do not fit'):
    batching.encode_batch(batch.examples, tok, max_prompt_tokens=4)


def test_the_builtin_task_fits_known_shapes(tok):
  # 3 for the user's header, 6 numbers, 2 for the end, 3 for the assistant's
  # header; 6 sums, the marker, the answer, the stop token.
  batch = next(
    batching.make_iterator(
      sources.running_sum(count=64),
      tok,
      batch_size=64,
      max_prompt_tokens=14,
      max_response_tokens=9,
    )
  )
  assert set(batch.prompt_length) == {14}
  assert set(batch.response_length) == {9}


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'source': []}, 'the source has no examples'),
    ({'batch_size': 0}, 'batch_size must be a multiple of the 1 processes'),
    ({'batch_size': 3, 'process_count': 2}, 'multiple of the 2 processes'),
    ({'process_index': 1}, 'no process 1 among 1'),
    ({'process_count': 0}, 'no process 0 among 0'),
    ({'seed': -1}, 'seed must not be negative'),
    ({'template_kwargs': {'thinking': True}}, 'example n0: .* no variable'),
    (
      {'source': [_source(2)[1]._replace(response='<|im_end|>')]},
      'example n1: the response contains the stop token',
    ),
  ],
)
def test_settings_that_cannot_work_are_refused(tok, wrong, message):
  settings = {'source': _source(4), 'batch_size': 2} | wrong
  with pytest.raises(ValueError, match=message):
    _make(tok=tok, **settings)

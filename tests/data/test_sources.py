"""Sources: the builtin tasks, JSON Lines files, prepared TFDS folders."""

import doctest
import hashlib
import json
import shutil

import numpy as np
import pytest

from jopd.data import sources
from jopd.data.examples import Example, Rejected
from jopd.data.rows import make_examples


def _write(path, rows):
  lines = (
    row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows
  )
  path.write_bytes(b'\n'.join(lines))
  return path


# tasks


def test_examples_of_the_tasks_print_what_they_say():
  assert doctest.testmod(sources.tasks).failed == 0


@pytest.mark.parametrize(
  'modulus, length', [(10, 6), (2, 9), (13, 3), (100, 4)]
)
def test_the_response_is_every_running_sum_then_the_last(modulus, length):
  # Kills: a sum without the modulus, or starting at the second number.
  for example in sources.running_sum(
    count=50, modulus=modulus, length=length, split='test'
  ):
    numbers = [int(word) for word in example.messages[0]['content'].split()]
    assert len(numbers) == length
    assert all(0 <= number < modulus for number in numbers)
    total, steps = 0, []
    for number in numbers:
      total = (total + number) % modulus
      steps.append(str(total))
    assert example.response == ' '.join(steps) + ' #### ' + steps[-1]
    assert example.answer == steps[-1]


def test_all_numbers_below_the_modulus_occur_equally_often():
  # Kills: bytes modulo 100, which favour the numbers below 56.
  source = sources.running_sum(count=5000, length=8, modulus=100)
  words = [e.messages[0]['content'].split() for e in source]
  counts = np.bincount(np.array(words, int).ravel(), minlength=100)
  # 400 expected each, standard deviation 20; bytes modulo 100 give 469 or 312.
  assert counts.min() > 310 and counts.max() < 490


def test_no_test_prompt_is_a_train_prompt():
  # Length 3 has only 1,000 prompts, so both splits are drawn many times over.
  # Kills: splits that differ only in their seed.
  prompts = {
    split: {
      example.messages[0]['content']
      for seed in (0, 1)
      for example in sources.running_sum(
        count=6000, length=3, split=split, seed=seed
      )
    }
    for split in ('train', 'test')
  }
  assert not prompts['train'] & prompts['test']
  assert len(prompts['train']) + len(prompts['test']) > 990
  assert 90 < len(prompts['test']) < 160  # one in eight of 1,000


def test_both_splits_exist_for_every_modulus():
  # Kills: drawing forever because the hash gave one split no prompt.
  for modulus in range(2, 101):
    length = next(n for n in range(1, 9) if modulus**n >= 64)
    for split in ('train', 'test'):
      source = sources.running_sum(
        count=1, modulus=modulus, length=length, split=split
      )
      assert source[0].answer is not None


def test_an_example_depends_on_seed_split_and_index_alone():
  # The definition, once more, in integers: platform and NumPy play no part.
  # Kills: a generator with state, or one whose stream NumPy may change.
  few = sources.running_sum(count=3, seed=7)
  many = sources.running_sum(count=1000, seed=7)
  assert many[2] == few[2] == few[-1]
  assert many[999] != many[998]
  assert sources.running_sum(count=3, seed=8)[2] != few[2]
  for index, example in enumerate(many[:40]):
    for attempt in range(100):
      noise = hashlib.shake_256(f'7/train/{index}/{attempt}'.encode()).digest(
        48
      )
      numbers = [
        int.from_bytes(noise[at : at + 8], 'little') % 10
        for at in range(0, 48, 8)
      ]
      prompt = ' '.join(map(str, numbers))
      if hashlib.sha256(prompt.encode()).digest()[0] >= 32:
        break
    assert example.messages == [{'role': 'user', 'content': prompt}]


def test_both_directions_have_one_prompt_and_one_answer():
  # Kills: a backward line that is the forward one reversed (it begins with the
  # answer), or that belongs to other prompts.
  both = [
    sources.running_sum(count=20, direction=direction)
    for direction in ('forward', 'backward')
  ]
  for forward, backward in zip(*both, strict=True):
    assert forward[:3] == backward[:3]
    numbers = [int(word) for word in forward.messages[0]['content'].split()]
    total, steps = 0, []
    for number in reversed(numbers):
      total = (total + number) % 10
      steps.append(str(total))
    assert backward.response == ' '.join(steps) + ' #### ' + forward.answer


def _parts(example):
  """Numbers and hint (or None) of a prompt, numbers and rule of a response."""
  hint, _, numbers = example.messages[0]['content'].rpartition(' + ')
  steps, _, answer = example.response.partition(' #### ')
  ints = lambda text: np.array(text.split(), int)
  rules, shifted = ints(steps).reshape(-1, 2).T
  assert set(rules) == {int(answer)}
  return ints(numbers), int(hint) if hint else None, shifted, int(answer)


def test_a_worked_hint_is_the_response_itself():
  [example] = sources.shift(count=1, hint_fraction=1.0, hint='worked')
  prompt = example.messages[0]['content']
  assert prompt.startswith(f'{example.response} + ')
  assert sources.shift(count=1)[0].response == example.response


@pytest.mark.parametrize('rule', [None, 0, 6])
def test_every_number_is_shifted_by_the_rule(rule):
  # Kills: a rule that is drawn where one was given (0 too), another one in the
  # prompt than in the response, or a sum without the modulus.
  source = sources.shift(
    count=60, modulus=7, length=4, rule=rule, hint_fraction=0.5
  )
  rules, hints = set(), 0
  for example in source:
    numbers, hint, shifted, answer = _parts(example)
    assert len(numbers) == 4 and numbers.max() < 7
    assert hint in (None, answer) and str(answer) == example.answer
    np.testing.assert_array_equal((numbers + answer) % 7, shifted)
    rules.add(answer)
    hints += hint is not None
  assert rules == (set(range(7)) if rule is None else {rule})
  assert 15 < hints < 45  # half of 60, standard deviation 3.9


def test_hints_and_rules_leave_the_numbers_alone():
  # Kills: a prompt with a hint in the other split than the same one without,
  # so that a test prompt would be trained on.
  numbers = lambda **settings: [
    _parts(e)[0].tolist() for e in sources.shift(count=30, **settings)
  ]
  assert numbers() == numbers(hint_fraction=1.0) == numbers(rule=2)
  hinted = {tuple(n) for n in numbers(hint_fraction=1.0, length=3)}
  test = {tuple(n) for n in numbers(split='test', length=3)}
  assert not hinted & test


def test_all_or_none_have_a_hint():
  for fraction in (0.0, 1.0):
    source = sources.shift(count=100, hint_fraction=fraction)
    assert {_parts(e)[1] is not None for e in source} == {bool(fraction)}


def test_a_lazy_source_is_a_sequence():
  # Kills: an index past the end that is made up instead of refused, which
  # makes a plain loop endless.
  source = sources.running_sum(count=4)
  assert [e.id for e in source] == [source[i].id for i in range(4)]
  assert len({e.id for e in source}) == 4
  assert source[1:3] == [source[1], source[-2]]
  with pytest.raises(IndexError):
    source[4]


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'split': 'dev'}, "split must be 'train' or 'test', got 'dev'"),
    ({'modulus': 101}, 'modulus must be from 2 to 100, got 101'),
    ({'modulus': 2, 'length': 5}, 'at least 64 different prompts'),
    ({'count': 0}, 'count >= 1'),
  ],
)
def test_running_sum_refuses_what_it_cannot_draw(wrong, message):
  with pytest.raises(ValueError, match=message):
    sources.running_sum(**{'count': 5, **wrong})


@pytest.mark.parametrize(
  'task, wrong, message',
  [
    (sources.running_sum, {'direction': 'up'}, "'backward', got 'up'"),
    (sources.shift, {'rule': 10}, 'rule must be from 0 to 9, got 10'),
    (sources.shift, {'hint_fraction': 1.5}, 'from 0 to 1, got 1.5'),
    (sources.shift, {'length': 1}, 'shift needs .* at least 64'),
  ],
)
def test_tasks_refuse_settings_out_of_range(task, wrong, message):
  with pytest.raises(ValueError, match=message):
    task(**{'count': 5, **wrong})


# jsonl


def test_jsonl_reads_prompts_and_chats(tmp_path):
  user = {'role': 'user', 'content': 'Hi'}
  reply = {'role': 'assistant', 'content': 'Hello'}
  path = _write(
    tmp_path / 'a.jsonl',
    [
      b'\xef\xbb\xbf' + json.dumps({'prompt': 'é?', 'answer': 7}).encode(),
      b'  \r',
      {'prompt': 'q', 'system': 's', 'response': 'r', 'answer': None},
      {'messages': [user, reply, user], 'id': 5, 'prompt': 'not read'},
      {'messages': [user, reply], 'id': 'x', 'more': [1]},
    ],
  )
  first, second, third, fourth = sources.jsonl(path)
  user_first = [{'role': 'user', 'content': 'é?'}]
  assert first[:6] == ('a.jsonl:1', user_first, '7', None, 1, '')
  # Kills: counting rows without the blank ones, so that row 3 reads as 2.
  assert second.id == 'a.jsonl:3'
  assert [turn['role'] for turn in second.messages] == ['system', 'user']
  assert (second.answer, second.response) == (None, 'r')
  # Kills: taking an assistant turn in the middle for the demonstration.
  assert third[:5] == ('5', [user, reply, user], None, None, 4)
  assert fourth[:5] == ('x', [user], None, 'Hello', 5)
  # All columns, as they are. Kills: a chat that lost its last turn.
  assert fourth.columns == dict(messages=[user, reply], id='x', more=[1])


def test_jsonl_reads_the_named_fields(tmp_path):
  path = _write(
    tmp_path / 'a.jsonl', [{'question': 'q', 'gold': 'g', 'solution': 's'}]
  )
  (example,) = sources.jsonl(
    path,
    prompt_field='question',
    answer_field='gold',
    response_field='solution',
  )
  assert example[1:4] == ([{'role': 'user', 'content': 'q'}], 'g', 's')


BAD_ROWS = [
  (b'{"prompt": "cut of', 'not JSON'),
  (b'{"prompt": "\xff"}', 'not UTF-8 at byte 12'),
  (b'[1, 2]', 'expected a JSON object, got list'),
  (b'{"prompt": "a", "answer": NaN}', 'NaN is not JSON'),
  (b'{"prompt": "\\ud800"}', 'lone surrogate'),
  (b'[' * 100_000, 'recursion'),
  ({'question': 'a'}, "no 'prompt' and no 'messages'"),
  ({'prompt': ' \n'}, "'prompt' is empty"),
  ({'prompt': 5}, "'prompt' must be text, got int"),
  ({'prompt': 'a', 'answer': True}, "'answer' must be text, got bool"),
  ({'prompt': 'a', 'answer': ''}, "'answer' is empty"),
  ({'prompt': 'a', 'response': ['b']}, "'response' must be text, got list"),
  ({'messages': []}, 'not empty'),
  ({'messages': 'hi'}, 'a list of turns'),
  ({'messages': [{'role': 'user'}]}, 'a turn must be'),
  ({'messages': [{'role': 'judge', 'content': 'a'}]}, "unknown role 'judge'"),
  ({'messages': [{'role': 'user', 'content': None}]}, 'has no content'),
  ({'messages': [{'role': 'system', 'content': 'a'}]}, 'a user turn last'),
  ({'messages': [{'role': 'assistant', 'content': 'a'}]}, 'a user turn last'),
  (
    {
      'messages': [
        {'role': 'user', 'content': 'a'},
        {'role': 'assistant', 'content': 'b'},
      ],
      'response': 'c',
    },
    "a final assistant turn and also 'response'",
  ),
]


def test_every_bad_row_is_left_out_with_its_number_and_reason(tmp_path):
  # Kills: one bad row that ends the reading, or takes a good one with it.
  rows = [{'prompt': 'good'}]
  for bad, _ in BAD_ROWS:
    rows += [bad, {'prompt': 'good'}]
  found = sources.jsonl(_write(tmp_path / 'a.jsonl', rows))
  assert len(found) == len(rows)
  assert all(isinstance(example, Example) for example in found[::2])
  for row, (_, reason) in zip(found[1::2], BAD_ROWS, strict=True):
    assert isinstance(row, Rejected) and row.bad and reason in row.reason
  assert [row.row for row in found] == list(range(1, len(rows) + 1))
  assert found[1].text == '{"prompt": "cut of'


def test_jsonl_refuses_files_without_examples(tmp_path):
  with pytest.raises(ValueError, match=r'none\.jsonl: no such file'):
    sources.jsonl(tmp_path / 'none.jsonl')
  with pytest.raises(ValueError, match='the file has no rows'):
    sources.jsonl(_write(tmp_path / 'b.jsonl', [b'', b' ']))


def test_no_bytes_break_the_reader(tmp_path):
  # Rows with random damage: each is read or rejected, none is lost.
  # Kills: an exception other than those foreseen.
  noise = np.random.default_rng(0)
  whole = json.dumps(
    {'messages': [{'role': 'user', 'content': 'é'}], 'answer': 1, 'id': None}
  ).encode()
  rows = [whole]
  for _ in range(500):
    row = bytearray(whole)
    for at in noise.integers(len(row), size=noise.integers(1, 4)):
      row[at] = noise.choice([b for b in range(256) if b not in b'\r\n'])
    rows.append(bytes(row))
  found = sources.jsonl(_write(tmp_path / 'a.jsonl', rows))
  bad = [row for row in found if isinstance(row, Rejected)]
  assert len(found) == 501 and 1 < len(bad) < 500


# rows of a user's function


def test_a_function_may_return_rows_or_examples():
  # Kills: an iterator without a length that is refused, a bad row that ends
  # the reading, a row of another data set's type that is held in memory.
  example = Example('e', [{'role': 'user', 'content': 'q'}])
  listed = [dict(prompt='p', answer=3, level='hard'), example, dict(answer='4')]
  for rows in (listed, iter(listed)):
    first, second, third = make_examples(rows, 'mine')
    assert first[:3] == ('mine/0', [{'role': 'user', 'content': 'p'}], '3')
    assert first.columns['level'] == 'hard' and second is example
    assert isinstance(third, Rejected) and "no 'prompt'" in third.reason

  class Indexed:  # such as a data set of Hugging Face
    def __len__(self):
      return 10**9

    def __getitem__(self, index):
      return dict(prompt=f'{index}', id=index)

  assert make_examples(Indexed(), 'mine')[5].id == '5'


# tfds


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A TFDS folder with three rows, the last of them with an empty answer."""
  import tensorflow_datasets as tfds

  class LittleSums(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {
        'q': tfds.features.Text(),
        'a': np.int32,
        's': tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for index, text in enumerate(('é 1', 'two', '')):
        yield index, {'q': text, 'a': index, 's': f'so {index}'}

  data_dir = tmp_path_factory.mktemp('tfds')
  builder = LittleSums(data_dir=data_dir, file_format='array_record')
  builder.download_and_prepare()
  return data_dir, builder.data_dir


@pytest.mark.parametrize('by_name', [True, False])
def test_tfds_reads_a_prepared_dataset_in_place(prepared, by_name):
  # Kills: text left as bytes ("b'two'").
  data_dir, folder = prepared
  where = ('little_sums', data_dir) if by_name else (folder, None)
  source = sources.tfds(
    where[0],
    data_dir=where[1],
    split='train[:2]',
    prompt_field='q',
    answer_field='a',
    response_field='s',
  )
  assert len(source) == 2
  user = {'role': 'user', 'content': 'é 1'}
  assert source[0][:4] == ('little_sums/train[:2]/0', [user], '0', 'so 0')
  assert source[1].messages[0]['content'] == 'two'
  assert source[0].columns == dict(q='é 1', a=0, s='so 0')


def test_tfds_refuses_what_is_not_there(prepared):
  data_dir, folder = prepared
  with pytest.raises(ValueError, match='not a TFDS dataset prepared as'):
    sources.tfds('gsm8k', split='train', prompt_field='q', data_dir=data_dir)
  with pytest.raises(ValueError, match='not a TFDS dataset prepared as'):
    sources.tfds(data_dir / 'typo', split='train', prompt_field='q')
  with pytest.raises(ValueError, match='has no field question; it has a, q, s'):
    sources.tfds(folder, split='train', prompt_field='question')
  with pytest.raises(ValueError, match='dev'):
    sources.tfds(folder, split='dev', prompt_field='q')
  source = sources.tfds(folder, split='train', prompt_field='q')
  assert source[2].reason == "little_sums/train/2: 'q' is empty"


def test_tfds_says_how_to_prepare_a_dataset_of_another_format(
  prepared, tmp_path
):
  # Kills: TFDS's own advice, which is to install TensorFlow.
  shutil.copytree(prepared[1], tmp_path / 'old')
  info = tmp_path / 'old' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match="file_format='array_record'"):
    sources.tfds(tmp_path / 'old', split='train', prompt_field='q')

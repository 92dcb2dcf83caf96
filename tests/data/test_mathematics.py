"""Published datasets, from small files with their columns; nothing is fetched.

The rows are made up; their columns and the ways in which they write answers
are those of the datasets.
"""

import json
import logging

import pyarrow as pa
from pyarrow import parquet
import pytest

from jopd.data import sources
from jopd.data.filtering import RejectedRows, RowFilter
from jopd.data.sources import tables


def write(path, rows):
  """Rows as the kind of file that the name says."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.parquet':
    parquet.write_table(pa.Table.from_pylist(rows), path)
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def select(rows):
  return RowFilter(RejectedRows(0.0), 'here').select(rows)


def prompts(examples):
  return [example.messages[-1]['content'] for example in examples]


def test_gsm8k_takes_the_number_after_the_hashes(tmp_path):
  solution = 'Half of 48 is <<48/2=24>>24.\n#### 1,024'
  rows = [dict(question='How many?', answer=solution)]
  write(tmp_path / 'main/train-00000-of-00001.parquet', rows)
  # Kills: the other subset of the same repository, with other solutions.
  other = [dict(question='Socratic', answer='** #### 1')]
  write(tmp_path / 'socratic/train-00000-of-00001.parquet', other)
  write(tmp_path / 'main/test-00000-of-00001.parquet', other)
  [example] = sources.gsm8k(path=str(tmp_path))
  assert example.id == 'gsm8k/train/0'
  assert prompts([example]) == ['How many?']
  assert example.answer == '1,024' and example.response == solution
  assert prompts(sources.gsm8k(path=str(tmp_path), split='test')) == [
    'Socratic'
  ]


def test_gsm8k_of_tfds_is_read_in_place(tmp_path):
  import tensorflow_datasets as tfds

  class Gsm8k(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      names = ('question', 'answer', 'annotation', 'short_answer')
      features = {name: tfds.features.Text() for name in names}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield (
        0,
        dict(
          question='How many?',
          answer='so\n#### 7',
          annotation='so\n',
          short_answer='7',
        ),
      )

  builder = Gsm8k(data_dir=tmp_path, file_format='array_record')
  builder.download_and_prepare()
  [example] = sources.gsm8k(path=str(builder.data_dir))
  assert prompts([example]) == ['How many?']
  assert (example.answer, example.response) == ('7', 'so\n#### 7')


@pytest.mark.parametrize(
  'solution, answer',
  [
    (r'so \boxed{\frac{1}{2}}.', r'\frac{1}{2}'),
    (r'\boxed{1}, no, \boxed{2}', '2'),  # kills: the first box
    (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),  # kills: counting escaped braces
    (r'so \fbox{3}', '3'),
    (r'so $\boxed 5$.', '5'),
  ],
)
def test_math_takes_the_last_box_of_the_solution(tmp_path, solution, answer):
  rows = [dict(problem='p', level='Level 1', type='Algebra', solution=solution)]
  for subject in ('algebra', 'geometry'):
    write(tmp_path / subject / 'train-00000-of-00001.parquet', rows)
  examples = sources.hendrycks_math(path=str(tmp_path))
  assert [example.answer for example in examples] == [answer] * 2
  assert [example.id for example in examples] == [
    'math/train/0',
    'math/train/1',
  ]
  assert examples[0].response == solution


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
  rows = [
    dict(problem='a', solution='no box'),
    dict(problem='b', solution=r'\boxed{2}'),
    dict(problem='c', solution=r'\boxed{never closed'),
  ]
  path = write(tmp_path / 'train-0.jsonl', rows)
  with caplog.at_level(logging.WARNING, 'jopd'):
    examples = sources.hendrycks_math(path=str(path))
  assert [row.bad for row in (examples[0], examples[2])] == [False, False]
  assert prompts(examples[1:2]) == ['b']
  assert '2 of 3 rows have no answer and are left out' in caplog.text
  path = write(tmp_path / 'none.jsonl', rows[:1])
  with pytest.raises(ValueError, match='none of its 1 rows has an answer'):
    sources.hendrycks_math(path=str(path))


def test_math500_aime_and_amc_state_their_answers(tmp_path):
  row = dict(problem='p', solution='s', answer=r'\pi', subject='x', level=2)
  write(tmp_path / 'm/test.jsonl', [row | dict(unique_id='test/x/1.json')])
  [example] = sources.math500(path=str(tmp_path / 'm'))
  assert (example.answer, example.response) == (r'\pi', 's')
  # Kills: a leading zero or a float that is lost before the reward sees it.
  row = dict(id=60, problem='p', solution='s', answer='033', url='u')
  write(tmp_path / 'a/data/train-00000-of-00001.parquet', [row])
  [example] = sources.aime(path=str(tmp_path / 'a'))
  assert (example.id, example.answer) == ('aime2024/0', '033')
  row = dict(id=0, answer=27.0, question='q', url='u')
  write(tmp_path / 'c/data/test-00000-of-00001.parquet', [row])
  [example] = sources.amc(path=str(tmp_path / 'c'))
  assert (prompts([example]), example.answer) == (['q'], '27.0')
  with pytest.raises(ValueError, match='year must be one of 2024, 2025'):
    sources.aime(year=2019)


@pytest.mark.parametrize('suffix', ['parquet', 'jsonl'])
def test_dapo_is_read_once_for_each_problem(tmp_path, suffix):
  def row(index, answer):
    turn = dict(content=f'Problem {index}\n\nAnswer:', role='user')
    return dict(
      data_source='math_dapo',
      prompt=[turn],
      ability='MATH',
      reward_model=dict(ground_truth=answer, style='rule-lighteval/MATH_v2'),
      extra_info=dict(index=f'id-{index}'),
    )

  rows = [row(0, '34'), row(1, '5'), row(0, '34'), row(1, '5')]
  write(tmp_path / f'data/dapo-math-17k.{suffix}', rows)
  examples = sources.dapo_math(path=str(tmp_path))
  # Kills: a hundred copies of each problem, 1.8 million rows.
  assert [example.answer for example in examples] == ['34', '5']
  assert examples[0].messages == [
    {'role': 'user', 'content': 'Problem 0\n\nAnswer:'}
  ]


def test_dapo_can_be_read_without_its_own_instruction(tmp_path):
  # Kills: two instructions in one prompt, which ask for different answers.
  words = (
    'Solve the following math problem step by step. The last line of your '
    'response should be of the form Answer: $Answer (without quotes) where '
    '$Answer is the answer to the problem.\n\nWhat is $1+1$?\n\n'
    'Remember to put your answer on its own line after "Answer:".'
  )
  row = dict(
    prompt=[dict(role='user', content=words)],
    reward_model=dict(ground_truth='2'),
    extra_info=dict(index='a'),
  )
  path = str(write(tmp_path / 'a.jsonl', [row]))
  assert prompts(sources.dapo_math(path=path)) == [words]
  assert prompts(sources.dapo_math(path=path, prompt='bare')) == [
    'What is $1+1$?'
  ]
  row['prompt'][0]['content'] = 'What is 1+1?'
  path = str(write(tmp_path / 'b.jsonl', [row]))
  with pytest.raises(ValueError, match='lacks the instructions of DAPO'):
    select(sources.dapo_math(path=path, prompt='bare'))
  with pytest.raises(ValueError, match="must be 'published' or 'bare'"):
    sources.dapo_math(path=path, prompt='plain')


def test_openthoughts_takes_a_domain_and_its_thoughts(tmp_path):
  row = dict(
    problem='p',
    deepseek_reasoning='hm',
    deepseek_solution=r'so \boxed{3}',
    ground_truth_solution=r'thus \boxed{3}',
    domain='math',
    source='numina_math',
    test_cases=None,
    starter_code=None,
  )
  write(
    tmp_path / 'metadata/train-00000-of-00001.parquet',
    [row, row | dict(domain='code', ground_truth_solution=None)],
  )
  write(tmp_path / 'data/train-0.parquet', [dict(system='s')])
  [example] = sources.openthoughts(path=str(tmp_path))
  assert example.response == '<think>\nhm\n</think>\n\nso \\boxed{3}'
  assert example.answer == '3'
  [example] = sources.openthoughts(path=str(tmp_path), response='solution')
  assert example.response == r'so \boxed{3}'
  with pytest.raises(ValueError, match=r"there are \['code', 'math'\]"):
    sources.openthoughts(path=str(tmp_path), domain='poetry')
  with pytest.raises(ValueError, match="must be 'thoughts' or 'solution'"):
    sources.openthoughts(path=str(tmp_path), response='all')


@pytest.mark.parametrize('suffix', ['parquet', 'jsonl'])
def test_a_missing_column_is_named_with_those_present(tmp_path, suffix):
  path = write(tmp_path / f'test.{suffix}', [dict(Problem='p', Answer='1')])
  with pytest.raises(
    ValueError, match='has no column problem, answer, solution; it has Answer, '
  ):
    select(sources.math500(path=str(path)))


def test_missing_and_broken_files_are_named(tmp_path):
  with pytest.raises(ValueError, match='file like main/train-'):
    sources.gsm8k(path=str(tmp_path))
  broken = tmp_path / 'test.jsonl'
  broken.write_text('{"problem": \n')
  with pytest.raises(ValueError, match=r'test\.jsonl, line 1: Expecting value'):
    select(sources.math500(path=str(broken)))
  broken = tmp_path / 'test.parquet'
  broken.write_bytes(b'PAR1 and no more')
  with pytest.raises(ValueError, match=r'test\.parquet is no whole Parquet'):
    sources.math500(path=str(broken))


GOOD = dict(problem='p', answer='1', solution='s')


@pytest.mark.parametrize(
  'row, reason',
  [
    (b'{"problem": "cut of', 'line 2: Unterminated string'),
    (b'{"problem": "\xff", "answer": "1", "solution": ""}', 'line 2: '),
    (b'[' * 100_000, 'line 2: maximum recursion'),
    (b'3', 'line 2: the row is no JSON object'),
    (dict(GOOD, problem=['p']), 'math500/1: TypeError: expected text'),
    (dict(GOOD, solution=3), 'math500/1: TypeError: expected text'),
  ],
)
def test_a_row_of_a_published_set_that_is_damaged_is_left_out(
  tmp_path, row, reason
):
  # Kills: one bad row that ends the reading, or takes a good one with it.
  rows = [json.dumps(GOOD).encode()] * 2
  rows.insert(1, row if isinstance(row, bytes) else json.dumps(row).encode())
  path = tmp_path / 'test.jsonl'
  path.write_bytes(b'\n'.join(rows))
  _, bad, last = sources.math500(path=str(path))
  assert bad.bad and reason in bad.reason and last.id == 'math500/2'


def test_text_of_a_parquet_file_that_is_not_utf8_is_left_out(tmp_path):
  # Kills: a UnicodeDecodeError that ends the reading of the whole file.
  texts = pa.array([b'p', b'\xff', b'q']).cast(pa.string(), safe=False)
  ones = pa.array(['1'] * 3)
  table = pa.table(dict(problem=texts, answer=ones, solution=ones))
  parquet.write_table(table, tmp_path / 'test.parquet')
  first, bad, last = sources.math500(path=str(tmp_path / 'test.parquet'))
  assert prompts([first, last]) == ['p', 'q']
  assert 'row 2: not UTF-8' in bad.reason


def test_without_a_network_the_error_says_what_to_do():
  # The tests are offline, and nothing is in the cache. Kills: a stack of
  # errors of the hub's client.
  with pytest.raises(ValueError, match='hf download --repo-type=dataset') as e:
    sources.amc()
  assert "'math-ai/amc23' is no folder here" in str(e.value)


def test_only_the_files_of_a_dataset_are_downloaded(tmp_path, monkeypatch):
  import huggingface_hub

  asked = []

  def snapshot_download(name, **options):
    asked.append((name, options))
    write(
      tmp_path / 'main/test-0.parquet', [dict(question='q', answer='#### 1')]
    )
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  [example] = sources.gsm8k(split='test', revision='v1')
  assert example.answer == '1'
  # Kills: all files of a repository, and a model of the same name.
  assert asked == [
    (
      'openai/gsm8k',
      dict(repo_type='dataset', revision='v1', allow_patterns=['*main/test-*']),
    )
  ]


def test_rows_are_in_the_order_of_the_files(tmp_path):
  for n in (1, 0, 2):
    write(tmp_path / f'data/train-0000{n}-of-3.parquet', [dict(a=n, b=0)])
  write(tmp_path / 'data/train.txt.gz', [])
  # All columns, of which `a` is needed.
  rows = tables.read(tmp_path, 'train*', ['a'])
  assert rows == [dict(a=n, b=0) for n in range(3)]

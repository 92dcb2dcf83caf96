r"""Published sets of mathematics, as on the Hugging Face hub.

Each function reads one dataset: its files, its columns, its way to state an
answer. `split` is 'train' or 'test'. `path` is a folder with the dataset's
files, as `hf download` leaves it, or one file; by default the dataset's name,
whose files are downloaded once, at `revision` (see `tables.read`).
Rows without an answer are left out and counted. Prompts are as published:
instructions such as "put the answer in \boxed{}" are a context
(data/contexts.py, `with_template`).
"""

from collections.abc import Callable, Iterable, Sequence
import logging
from operator import itemgetter
from pathlib import Path
import re

from jopd.data.examples import Example, Rejected
from jopd.data.sources import files, tables

_log = logging.getLogger(__name__)
# What DAPO-Math-17k writes before and after each problem.
_DAPO = (
  'Solve the following math problem step by step. The last line of your'
  ' response should be of the form Answer: $Answer (without quotes) where'
  ' $Answer is the answer to the problem.\n\n',
  '\n\nRemember to put your answer on its own line after "Answer:".',
)


def gsm8k(
  *,
  path: str = 'openai/gsm8k',
  split: str = 'train',
  revision: str | None = None,
) -> Sequence[Example | Rejected]:
  """GSM8K: grade school mathematics, 7473 to train on and 1319 to test.

  Columns question and answer; an answer is a solution that ends in '#### 72',
  and is also the response, with its calculator notes (<<48/2=24>>) as
  published. The folder of a TFDS `gsm8k`, prepared as array_record, is read as
  well, without TensorFlow.

  References: Cobbe et al., Training Verifiers to Solve Math Word Problems,
    arXiv 2110.14168.
  """
  if (Path(path) / 'dataset_info.json').is_file():
    fields = dict(answer_field='short_answer', response_field='answer')
    return files.tfds(path, split=split, prompt_field='question', **fields)
  columns = ('question', 'answer')
  rows = tables.read(path, f'main/{split}-*', columns, revision=revision)
  after_hashes = lambda text: (
    text.rpartition('####')[2] if '####' in text else ''
  )
  return _examples(
    f'gsm8k/{split}',
    rows,
    lambda row: (row['question'], after_hashes(row['answer']), row['answer']),
  )


def hendrycks_math(
  *,
  path: str = 'EleutherAI/hendrycks_math',
  split: str = 'train',
  revision: str | None = None,
) -> list[Example | Rejected]:
  r"""MATH: competition problems of seven subjects, 7500 and 5000.

  Columns problem and solution; the answer is in the solution's last \boxed{}
  (or \boxed 5, or \fbox{}), and the solution is the response. MATH-500 is a
  part of its test split.

  References: Hendrycks et al., Measuring Mathematical Problem Solving With the
    MATH Dataset, arXiv 2103.03874.
  """
  columns = ('problem', 'solution')
  rows = tables.read(path, f'{split}-*', columns, revision=revision)
  return _examples(
    f'math/{split}',
    rows,
    lambda row: (row['problem'], _last_box(row['solution']), row['solution']),
  )


def math500(
  *, path: str = 'HuggingFaceH4/MATH-500', revision: str | None = None
) -> list[Example | Rejected]:
  """MATH-500: 500 test problems of MATH.

  Columns problem, answer and solution, which is the response.

  References: Lightman et al., Let's Verify Step by Step, arXiv 2305.20050.
  """
  columns = ('problem', 'answer', 'solution')
  rows = tables.read(path, 'test*', columns, revision=revision)
  return _examples('math500', rows, itemgetter(*columns))


def aime(
  *, year: int = 2024, path: str = '', revision: str | None = None
) -> list[Example | Rejected]:
  """AIME I and II of a year: 30 problems, whose answers are 0 to 999.

  Columns problem and answer. One problem is 3.3 points: take many samples.

  Args:
    year: 2024 is HuggingFaceH4/aime_2024, 2025 is yentinglin/aime_2025; with a
      path it is a name only.

  Raises: ValueError for another year without a path.
  """
  known = {2024: 'HuggingFaceH4/aime_2024', 2025: 'yentinglin/aime_2025'}
  if not path and year not in known:
    raise ValueError(
      f'year must be one of {", ".join(map(str, known))} unless path is set,'
      f' got {year}'
    )
  columns = ('problem', 'answer')
  rows = tables.read(path or known[year], '*train*', columns, revision=revision)
  return _examples(f'aime{year}', rows, itemgetter(*columns))


def amc(
  *, path: str = 'math-ai/amc23', revision: str | None = None
) -> list[Example | Rejected]:
  """AMC 12 of 2023: 40 problems, asked for a number instead of a choice.

  Columns question and answer, which is a number such as 27.0.
  """
  columns = ('question', 'answer')
  rows = tables.read(path, 'test*', columns, revision=revision)
  return _examples('amc', rows, itemgetter(*columns))


def dapo_math(
  *,
  path: str = 'BytedTsinghua-SIA/DAPO-Math-17k',
  prompt: str = 'published',
  revision: str | None = None,
) -> list[Example | Rejected]:
  """DAPO-Math-17k: competition problems with whole numbers as answers.

  Columns prompt (chat turns), reward_model.ground_truth and extra_info.index.
  The published file holds each problem a hundred times; here it is read once.

  Args:
    prompt: 'published' asks for a last line 'Answer: ...', which goes with the
      reward dict(name='math_match', marker='Answer:'); 'bare' is the problem
      without that, for your own context.

  Raises: ValueError for another prompt.
  References: Yu et al., DAPO, arXiv 2503.14476.
  """
  if prompt not in ('published', 'bare'):
    raise ValueError(f"prompt must be 'published' or 'bare', got {prompt!r}")
  columns = ('prompt', 'reward_model', 'extra_info')
  once = ('extra_info', 'index')
  rows = tables.read(path, '*', columns, revision=revision, once=once)

  def fields(row: dict) -> tuple:
    text = row['prompt'][-1]['content'] if row['prompt'] else ''
    if prompt == 'bare' and text:
      if not (text.startswith(_DAPO[0]) and text.endswith(_DAPO[1])):
        raise ValueError(
          f'the prompt {text[:60]!r} lacks the instructions of DAPO-Math-17k;'
          " set prompt='published'"
        )
      text = text.removeprefix(_DAPO[0]).removesuffix(_DAPO[1]).strip()
    return text, (row['reward_model'] or {}).get('ground_truth')

  return _examples('dapo_math', rows, fields)


def openthoughts(
  *,
  path: str = 'open-thoughts/OpenThoughts-114k',
  domain: str = 'math',
  response: str = 'thoughts',
  revision: str | None = None,
) -> list[Example | Rejected]:
  r"""OpenThoughts-114k: problems with thoughts and solutions of DeepSeek-R1.

  Read from its subset `metadata`, columns problem, deepseek_reasoning,
  deepseek_solution, ground_truth_solution and domain. The answer is in the last
  \boxed{} of the ground truth; rows without one are left out.

  Args:
    domain: which rows: 'math', 'code', 'science', ...
    response: 'thoughts' is <think>, the reasoning, </think> and the solution,
      as Qwen3 and DeepSeek-R1 write them; 'solution' is the solution alone.

  Raises: ValueError for another response.
  References: Guha et al., OpenThoughts, arXiv 2506.04178.
  """
  if response not in ('thoughts', 'solution'):
    raise ValueError(
      f"response must be 'thoughts' or 'solution', got {response!r}"
    )
  columns = ('problem', 'deepseek_reasoning', 'deepseek_solution')
  columns += ('ground_truth_solution', 'domain')
  rows = tables.read(path, 'metadata/*', columns, revision=revision)

  def fields(row: dict) -> tuple:
    text = row['deepseek_solution']
    if response == 'thoughts':
      text = f'<think>\n{row["deepseek_reasoning"]}\n</think>\n\n{text}'
    answer = _last_box(row['ground_truth_solution'] or '')
    return row['problem'], answer, text

  domains = {str(r['domain']) for r in rows if not isinstance(r, Rejected)}
  if domain not in domains:
    raise ValueError(
      f'no row has domain {domain!r}; there are {sorted(domains)}'
    )
  rows = [r for r in rows if isinstance(r, Rejected) or r['domain'] == domain]
  return _examples(f'openthoughts/{domain}', rows, fields)


def _examples(
  name: str,
  rows: Iterable[dict | Rejected],
  fields: Callable[[dict], tuple],
) -> list[Example | Rejected]:
  """Rows as examples; rows without a prompt or an answer are rejected.

  Args:
    name: of the dataset; ids are '<name>/<index>'.
    rows: of it.
    fields: (row) -> prompt, answer and, if there is one, response.
  """
  examples, unanswered = [], 0
  for index, row in enumerate(rows):
    if not isinstance(row, Rejected):
      try:
        row = _example(f'{name}/{index}', row, *fields(row))
      # A missing value, or one of another type than its column has.
      except (TypeError, AttributeError, KeyError, IndexError) as error:
        reason = f'{name}/{index}: {type(error).__name__}: {error}'
        row = Rejected(reason, str(row))
      except ValueError as error:
        row = Rejected(f'{name}/{index}: {error}', str(row))
      unanswered += isinstance(row, Rejected) and not row.bad
    examples.append(row)
  if unanswered == len(examples):
    raise ValueError(f'{name}: none of its {unanswered} rows has an answer')
  if unanswered:
    _log.warning(
      '%s: %d of %d rows have no answer and are left out',
      name,
      unanswered,
      len(examples),
    )
  return examples


def _example(id: str, row: dict, prompt, answer, response=None):
  """A row as an example; rejected without a prompt or an answer."""
  answer = '' if answer is None else str(answer).strip()
  if not prompt or not answer:
    return Rejected(f'{id}: no prompt or no answer', str(row), bad=False)
  if not isinstance(prompt, str) or not isinstance(response, str | None):
    raise TypeError(f'expected text, got {prompt!r:.40}, {response!r:.40}')
  messages = [{'role': 'user', 'content': prompt}]
  return Example(id, messages, answer, response, columns=row)


def _last_box(solution: str) -> str:
  r"""What stands in the last \boxed{} or \fbox{}, or behind a bare \boxed."""
  boxes = list(re.finditer(r'\\(?:boxed|fbox)\s*(?=[{\w])', solution))
  if not boxes:
    return ''
  rest = solution[boxes[-1].end() :]
  if rest[0] != '{':
    return re.split(r'[$\s.]', rest, maxsplit=1)[0]
  depth = 0
  for match in re.finditer(r'\\.|[{}]', rest, re.DOTALL):
    depth += {'{': 1, '}': -1}.get(match[0], 0)
    if depth == 0:
      return rest[1 : match.start()]
  return ''

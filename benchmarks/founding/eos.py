"""A teacher that ends its turns with another token makes answers run on.

At the end of an answer such a teacher asks for its own token, which does not
stop the student's rollouts: the student learns the answer and how not to end it
(When EOS Tokens Disagree, 2026; Fu et al., Revisiting On-Policy Distillation,
arXiv 2603.25562, special-token mismatch).

Set-up: the pair of `topk_bias`, full vocabulary, at most 16 tokens, of which an
answer needs 9. The other teacher learnt from a chat template that ends a turn
with <|endoftext|>. Its folder names both tokens as ends, as many chat models
do, so the pair has an end in common and is not refused.
"""

import json
import pathlib
import shutil

from founding.lab import LARGE, matching
from jopd.data.tokenizer import builtin_tokenizer
from jopd.models import hf
from jopd.run import build

SIGNATURE = (
  'matched: truncated below 0.05',
  'mismatched: truncated above 0.8',
  "repaired by the teacher's stop ids: truncated below 0.05, as accurate as"
  ' the matched pair within 0.1',
  'a teacher with no end in common is refused before a weight is loaded',
)
SHOWN = (
  'truncated_after',
  'length_after',
  'accuracy_before',
  'accuracy_after',
  'refused',
)
ROOM = dict(max_response_tokens=16)


def measure(lab) -> dict[str, dict[str, float]]:
  """Distils from each teacher, and with the stop ids of both."""
  tokenizer = _other_end(lab.folder / 'eos' / 'tokenizer')
  other = lab.sft(
    'eos/teacher',
    LARGE,
    run=dict(tokenizer=tokenizer),
    steps=300,
    lr_schedule='cosine',
  )
  how = {
    'matched': dict(run=ROOM),
    'mismatched': dict(run=ROOM, teacher=other),
    'repaired': dict(run=ROOM | dict(tokenizer=other), teacher=other),
  }
  rows = {}
  for name, settings in how.items():
    record = lab.distil(f'eos/{name}', matching('reverse_kl'), **settings)
    before, after = record.evaluated('response_length')
    rows[name] = record.row() | dict(
      length_before=before,
      length_after=after,
      truncated_before=record.evaluated('truncated')[0],
      truncated_after=record.evaluated('truncated')[1],
    )
  stranger = _without_common_end(other, lab.folder / 'eos' / 'stranger')
  config = lab.distilling(matching('reverse_kl'), teacher=stranger)
  rows['no end in common'] = dict(refused=float(_is_refused(config)))
  return rows


def _other_end(folder: pathlib.Path) -> str:
  """The builtin tokenizer, but an assistant's turn ends with another token."""
  tokenizer = builtin_tokenizer()
  before, mark, after = tokenizer.chat_template.partition('{% generation %}')
  after = after.replace('<|im_end|>', '<|endoftext|>', 1)
  tokenizer.chat_template = before + mark + after
  tokenizer.save_pretrained(folder)
  return str(folder)


def _without_common_end(folder: str, copy: pathlib.Path) -> str:
  """The same model, with <|endoftext|> as the only end in its files."""
  shutil.copytree(folder, copy, dirs_exist_ok=True)
  tokenizer = hf.load_tokenizer(folder)
  tokenizer.eos_token = '<|endoftext|>'
  tokenizer.save_pretrained(copy)
  for name in ('config.json', 'generation_config.json'):
    settings = json.loads((copy / name).read_text())
    settings['eos_token_id'] = tokenizer.eos_token_id
    (copy / name).write_text(json.dumps(settings))
  return str(copy)


def _is_refused(config) -> bool:
  try:
    build.build(config)
  except ValueError as error:
    return 'a student would never learn to stop' in str(error)
  return False


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  truncated = lambda name: rows[name]['truncated_after']
  accuracy = lambda name: rows[name]['accuracy_after']
  return [
    truncated('matched') < 0.05,
    truncated('mismatched') > 0.8,
    truncated('repaired') < 0.05
    and abs(accuracy('repaired') - accuracy('matched')) <= 0.1,
    rows['no end in common']['refused'] == 1.0,
  ]

"""What each console command does."""

import json
import pathlib
import sys

import jax
from tqdm import tqdm

from jopd import build, sharding
from jopd import config as configs
from jopd.data import sources
from jopd.data.batching import encode_batch
from jopd.data.examples import Example
from jopd.data.prompts import encode_prompt
from jopd.diagnose.report import report as draw
from jopd.models import hf
from jopd.programs import cache_compilations
from jopd.rollout.engine import decode, make_generate
from jopd.train import pipeline


def say(line: str) -> None:
  """A line for the person who waits, above any progress bar."""
  tqdm.write(line, file=sys.stderr)


def train(arguments, overrides) -> None:
  """Runs a config, then prints its table and draws its report."""
  config = configs.load(arguments.config, overrides)
  if arguments.distributed:
    jax.distributed.initialize()
  cache_compilations()
  workdir = pathlib.Path(arguments.workdir)
  built = build.build(config, say=say)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json').write_text(config.to_json_best_effort(indent=2))
  summary = pipeline.train(built.run, built.stages, built.params, workdir)
  page = draw([workdir])
  print(table(summary))
  print(f'model    {summary["model"]}')
  print(f'report   {page}')


def table(summary: dict) -> str:
  """The accuracies of a run as text, a row per stage."""
  columns = ('student_before', 'student_after', 'teacher', 'gap_recovered')
  lines = [' '.join([f'{"stage":<12}', *(f'{c:>15}' for c in columns)])]
  for name, result in summary['stages'].items():
    cells = ['-' if result[c] is None else f'{result[c]:.3f}' for c in columns]
    lines.append(' '.join([f'{name:<12}', *(f'{c:>15}' for c in cells)]))
  return '\n'.join(lines)


def eval(arguments, overrides) -> None:
  """Prints the accuracies of a Hugging Face folder as JSON."""
  config = configs.load(arguments.config, overrides)
  cache_compilations()
  evaluate = build.build_evaluation(config, arguments.model, say=say)
  print(json.dumps(evaluate(), indent=2))


# Rows of --prompts that are decoded together.
_ROWS = 64


def sample(arguments, overrides) -> None:
  """Answers --prompt as text, or the rows of --prompts as JSONL."""
  del overrides
  if (arguments.prompt is None) == (arguments.prompts is None):
    raise ValueError('give one of --prompt=TEXT and --prompts=FILE')
  if arguments.n < 1 or arguments.max_new_tokens < 1:
    raise ValueError('--n and --max-new-tokens must be at least 1')
  cache_compilations()
  if arguments.prompts:
    examples = sources.jsonl(arguments.prompts)
  else:
    turn = {'role': 'user', 'content': arguments.prompt}
    examples = [Example('prompt', [turn])]
  answers = _answers(
    arguments, [e for e in examples for _ in range(arguments.n)]
  )
  if arguments.prompt:
    for _, answer in answers:
      print(answer['response'])
    return
  out = open(arguments.out, 'w') if arguments.out else sys.stdout
  with out:
    for example, answer in answers:
      out.write(json.dumps({'id': example.id, **answer}) + '\n')


def _answers(arguments, examples):
  """(example, answer) pairs, batch by batch."""
  tokenizer = hf.load_tokenizer(arguments.model)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model, params = hf.load(
    arguments.model,
    shardings=lambda axes, shapes: sharding.param_shardings(mesh, axes, shapes),
  )
  generate = make_generate(
    model,
    mesh,
    stop_ids=hf.stop_ids(arguments.model, tokenizer),
    max_new_tokens=arguments.max_new_tokens,
    vocab_size=len(tokenizer),
    say=say,
  )
  longest = max(len(encode_prompt(tokenizer, e.messages)) for e in examples)
  key = jax.random.key(arguments.seed)
  for start in range(0, len(examples), _ROWS):
    rows = examples[start : start + _ROWS]
    batch = encode_batch(rows, tokenizer, max_prompt_tokens=longest)
    rollout = jax.device_get(
      generate(
        params,
        batch.prompt,
        batch.prompt_length,
        jax.random.fold_in(key, start),
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
      )
    )
    texts = decode(tokenizer, rollout)
    for i, example in enumerate(rows):
      yield (
        example,
        dict(
          response=texts[i],
          tokens=int(rollout.response_length[i]),
          stopped=bool(rollout.stopped[i]),
        ),
      )


def report(arguments, overrides) -> None:
  """Draws runs and prints where the page is."""
  del overrides
  print(draw(arguments.runs, out=arguments.out))

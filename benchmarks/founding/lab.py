"""Where findings are made: small models, trained once per seed, and runs."""

import json
import pathlib
import sys

import jax
import numpy as np

from jopd.cli import train
from jopd.report.runs import Row, number, read_runs
from jopd.run import config as configs
from jopd.run.resolve import plain

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'configs'))

from common import IMITATE, LARGE, SMALL, SUMS, policy_gradient

__all__ = ['IMITATE', 'LARGE', 'SMALL', 'SUMS', 'policy_gradient']  # of configs


def top_k(of: str, tail: str, k: int = 4) -> dict:
  """The k likeliest tokens of a side, as a setting."""
  return dict(name='top_k', k=k, of=of, tail=tail)


def matching(divergence: str, support='full', **settings) -> dict:
  """A loss of one term that matches distributions, as a setting."""
  term = dict(objective='divergence', divergence=divergence, support=support)
  return dict(match=term | settings)


class Record:
  """What a finished run wrote down."""

  def __init__(self, folder: pathlib.Path):
    [self.run] = read_runs([folder])
    self.folder = folder
    self.model = self.run.summary['model']

  def evaluated(self, name: str = 'greedy_accuracy') -> tuple[float, float]:
    """A metric of the student's evaluations, before and after."""
    rows = [row for row in self.run.rows if row['kind'] == 'eval']
    last = max(rows, key=lambda row: row['step'])
    of_student = [row for row in rows if row['model'] == last['model']]
    return number(of_student[0], name), number(last, name)

  def trained(self, name: str) -> np.ndarray:
    """A metric of all training steps."""
    rows: list[Row] = [row for row in self.run.rows if row['kind'] == 'train']
    return np.array([number(row, name) for row in rows])

  def row(self) -> dict[str, float]:
    """What findings compare; training metrics are means of ten steps."""
    before, after = self.evaluated()
    row = dict(accuracy_before=before, accuracy_after=after)
    for name in ('reverse_kl', 'loss', 'target_mass', 'student_entropy'):
      values = self.trained(name)
      row |= {
        f'{name}_before': float(np.mean(values[:10])),
        f'{name}_after': float(np.mean(values[-10:])),
      }
    return row


class Lab:
  """The runs of one seed, each in a folder of its own and made only once.

  Args:
    workdir: of all seeds.
    seed: of weights, data order and samples.
  """

  def __init__(self, workdir: pathlib.Path, seed: int):
    self.folder = workdir / f'seed{seed}'
    self.seed = seed

  def config(self, **settings):
    """The settings that runs share, and some of a run's own."""
    config = configs.base()
    config.seed = self.seed
    config.data = SUMS
    config.eval_data = SUMS | dict(count=256, split='test')
    config.max_prompt_tokens = 16
    config.max_response_tokens = 12
    config.eval.samples = 0
    for name, value in settings.items():
      config[name] = value
    return config

  def run(self, name: str, config) -> Record:
    """Trains, unless the folder holds the finished run."""
    folder = self.folder / name
    files = folder / 'summary.json', folder / 'config.json'
    settings = json.dumps(plain(config), indent=2, sort_keys=True) + '\n'
    # jopd would find a finished run finished too, after loading it.
    if not all(f.is_file() for f in files) or files[1].read_text() != settings:
      train.run(config, folder)
      # Each run compiles programs of its own.
      jax.clear_caches()
    return Record(folder)

  def sft(self, name: str, model: dict, *, run=(), **settings) -> str:
    """Trains a model on demonstrations; returns its folder."""
    config = self.config(**dict(run))
    config.models.student = model
    defaults = dict(learning_rate=3e-3, warmup_steps=20, loss=IMITATE)
    config.stages = ('sft',)
    config.sft = configs.stage(
      response_source='dataset', **(defaults | settings)
    )
    return self.run(name, config).model

  def teacher(self) -> str:
    """The folder of the model that has mastered the running sum."""
    return self.sft('teacher', LARGE, steps=300, lr_schedule='cosine')

  def student(self, steps: int = 250) -> str:
    """The folder of the one that saw 320 demonstrations of it."""
    few = SUMS | dict(count=320)
    return self.sft(f'student{steps}', SMALL, data=few, steps=steps)

  def distil(self, name: str, terms: dict, **how) -> Record:
    """A student's own rollouts, scored by a teacher; see `distilling`."""
    return self.run(name, self.distilling(terms, **how))

  def distilling(
    self, terms: dict, *, student=None, teacher=None, run=(), **settings
  ):
    """The config of it.

    Args:
      terms: the loss.
      student, teacher: folders; by default those of the running sum.
      run: settings of the run that are not the shared ones.
      settings: of the stage.
    """
    config = self.config(**dict(run))
    config.models.student = dict(path=student or self.student())
    config.models.teacher = dict(path=teacher or self.teacher())
    defaults = dict(
      teachers=dict(teacher='teacher'),
      steps=150,
      learning_rate=2e-3,
      warmup_steps=10,
      lr_schedule='cosine',
      loss=terms,
    )
    config.stages = ('distil',)
    config.distil = configs.stage(**(defaults | settings))
    return config

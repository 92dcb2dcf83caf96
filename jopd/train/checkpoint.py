"""Checkpoints of a stage: everything that resuming needs, and nothing frozen.

Orbax writes the arrays into a folder beside the place; a manifest is added,
all is synced to the disk, and then the folder gets its name. So a checkpoint is
there whole or not at all, and one that has changed since is found out.
"""

from collections.abc import Callable
import logging
import pathlib
import shutil

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from jopd.models import files
from jopd.train import distributed, manifest
from jopd.train.errors import WrongInputError
from jopd.train.state import TrainState

_log = logging.getLogger(__name__)


def examine(folder: pathlib.Path) -> tuple[list[int], dict[int, str]]:
  """The steps that can be gone on from, and newer ones that are damaged.

  Args:
    folder: of the checkpoints; it need not be there.

  Returns:
    Steps, the newest last, which is whole; older ones are read when they are
    needed. And step -> what is wrong with it.
  """
  steps = sorted(
    int(path.name) for path in folder.glob('*') if path.name.isdecimal()
  )
  damaged = {}
  while steps and (wrong := manifest.damage(folder / str(steps[-1]))):
    damaged[steps.pop()] = wrong
  return steps, damaged


class Checkpoints:
  """The checkpoints in one folder, newest `keep` of them.

  A damaged one that is newer than all whole ones is named, and moved aside to
  `<step>.damaged`. With several processes all must make the same calls; the
  first one looks, names and removes.

  Args:
    folder: made if missing; leftovers of an interrupted save are removed.
    every: save when the step is a multiple of it.
    keep: older ones are deleted, once the newest is safe on the disk.
    fingerprint: JSON-able settings that must not change between save and
      restore, such as the sizes of the model. The dtypes of the state follow
      from them, or Orbax would cast without a word.
    strict: refuses to go back behind a damaged checkpoint.

  Raises:
    ValueError: a checkpoint is damaged, and strict.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    every: int,
    keep: int,
    fingerprint: dict,
    strict: bool = False,
  ):
    self._folder = folder.resolve()
    self._every, self._keep = every, keep
    self._fingerprint = fingerprint
    self._steps, damaged = distributed.broadcast_from_host0(
      lambda: examine(self._folder)
    )
    on_from = f'step {self._steps[-1]}' if self._steps else 'the beginning'
    for step, wrong in damaged.items():
      found = f'checkpoint {self._folder}/{step} is damaged: {wrong}'
      if strict:
        raise WrongInputError(
          f'{found}; mend it, or go on from {on_from} without --strict'
        )
      _log.warning(
        f'{found}; it is now {step}.damaged, and {on_from} is gone on from'
      )
    if jax.process_index() == 0:
      self._folder.mkdir(parents=True, exist_ok=True)
      for step in damaged:
        aside = self._folder / f'{step}.damaged'
        shutil.rmtree(aside, ignore_errors=True)
        (self._folder / step).rename(aside)
      for leftover in self._folder.glob('.*'):
        shutil.rmtree(leftover)
    multihost_utils.sync_global_devices(f'opened {self._folder}')
    self._retire()  # what a kill left between a save and its clean-up
    # One writer, in the caller's time: what is reported as saved is.
    self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

  def save(
    self,
    step: int,
    state: TrainState,
    collect: Callable[[], tuple[dict, dict]] = lambda: ({}, {}),
    *,
    force=False,
  ):
    """Saves if it is time to, or if forced; a step is saved once.

    Args:
      step: done.
      state: on the mesh.
      collect: () -> what else resuming needs: plain JSON by name, and a tree
        of further arrays on the mesh, which may be empty. Called if it is time.
      force: whether it is time.
    """
    due = force or step % self._every == 0
    if not due or step in self._steps:
      return
    partial = self._folder / f'.{step}.partial'
    resume, arrays = collect()
    more = dict(arrays=ocp.args.StandardSave(arrays)) if arrays else {}
    self._orbax.save(
      partial,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state._asdict()),
        resume=ocp.args.JsonSave(resume | dict(fingerprint=self._fingerprint)),
        **more,
      ),
    )
    if jax.process_index() == 0:
      # All have written theirs: Orbax waits for them.
      files.write_json(partial / manifest.NAME, manifest.describe(partial))
      files.publish(partial, self._folder / str(step))
    multihost_utils.sync_global_devices(f'saved {self._folder}/{step}')
    self._steps.append(step)
    self._retire()

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest state and what was saved with it; None without a checkpoint.

    Args:
      abstract: shapes, dtypes and shardings of the state, which need not be
        the shardings it was saved from.

    Raises:
      ValueError: the checkpoint is of other settings, or of other shapes.
    """
    if not self._steps:
      return None
    path = self._folder / str(self._steps[-1])
    resume = self._orbax.restore(
      path, args=ocp.args.Composite(resume=ocp.args.JsonRestore())
    ).resume
    self._refuse_other_run(resume.pop('fingerprint'), path)
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract._asdict())
    )
    state = self._orbax.restore(path, args=args).state
    return TrainState(**state), resume

  def restore_arrays(self, abstract: dict) -> dict:
    """The further arrays of the newest checkpoint, from their shapes."""
    if not abstract:
      return {}
    args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
    path = self._folder / str(self._steps[-1])
    return self._orbax.restore(path, args=args).arrays

  def close(self):
    """Waits for what is under way."""
    self._orbax.close()

  def _retire(self):
    """Removes all but the newest `keep`, oldest first."""
    while len(self._steps) > self._keep:
      step = self._steps.pop(0)
      if jax.process_index() == 0:
        # Out of sight first: a folder with a step's name is whole.
        hidden = self._folder / f'.{step}.old'
        (self._folder / str(step)).rename(hidden)
        shutil.rmtree(hidden)

  def _refuse_other_run(self, saved: dict, path: pathlib.Path):
    for name, value in self._fingerprint.items():
      if saved.get(name) != value:
        raise WrongInputError(
          f'{path} was saved with {name} = {saved.get(name)!r}, this run has'
          f' {value!r}; go on with the saved setting, or start in another'
          ' --workdir'
        )

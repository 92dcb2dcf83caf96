"""Checkpoints of a stage: everything that resuming needs, and nothing frozen.

A thin room around Orbax, which writes to a temporary folder and renames, so a
checkpoint is there whole or not at all.
"""

import pathlib

import orbax.checkpoint as ocp

from jopd.train.state import TrainState


class Checkpoints:
  """The checkpoints in one folder, newest `keep` of them.

  Args:
    folder: made if missing; leftovers of an interrupted save are removed.
    every: save when the step is a multiple of it.
    keep: older ones are deleted.
    fingerprint: JSON-able settings that must not change between save and
      restore, such as the sizes of the model. The dtypes of the state follow
      from them, or Orbax would cast without a word.
  """

  def __init__(
    self, folder: pathlib.Path, *, every: int, keep: int, fingerprint: dict
  ):
    self._fingerprint = fingerprint
    self._every = every
    self._manager = ocp.CheckpointManager(
      folder.resolve(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        cleanup_tmp_directories=True,
        # One writer, in the caller's time: what is reported as saved is.
        enable_async_checkpointing=False,
      ),
    )

  def save(
    self, step: int, state: TrainState, iterator_state: dict, *, force=False
  ):
    """Saves if it is time to, or if forced; a step is saved once."""
    due = force or step % self._every == 0
    if not due or step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state._asdict()),
        resume=ocp.args.JsonSave(
          dict(iterator=iterator_state, fingerprint=self._fingerprint)
        ),
      ),
    )

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest state and iterator state, or None if nothing was saved.

    Args:
      abstract: shapes, dtypes and shardings of the state, which need not be
        the shardings it was saved from.

    Raises:
      ValueError: the checkpoint is of other settings, or of other shapes.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract._asdict()),
      resume=ocp.args.JsonRestore(),
    )
    resume = self._manager.restore(
      step, args=ocp.args.Composite(resume=ocp.args.JsonRestore())
    ).resume
    self._refuse_other_run(resume['fingerprint'], step)
    state = TrainState(**self._manager.restore(step, args=args).state)
    return state, resume['iterator']

  def close(self):
    """Waits for what is under way."""
    self._manager.close()

  def _refuse_other_run(self, saved: dict, step: int):
    for name, value in self._fingerprint.items():
      if saved.get(name) != value:
        raise ValueError(
          f'{self._manager.directory}/{step} was saved with {name} ='
          f' {saved.get(name)!r}, this run has {value!r}; go on with the saved'
          ' setting, or start in another --workdir'
        )

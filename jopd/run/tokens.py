"""The one tokenizer of a run, and whether its models agree on it."""

from jopd.data.tokenizer import builtin_tokenizer
from jopd.models import hf, hub


def find_tokenizer(config) -> tuple[str, object, set[int]]:
  """The tokenizer that all models of a config share.

  Args:
    config: with its `tokenizer` and `models`.

  Returns:
    Where it is from, itself, and the ids that end a turn.

  Raises:
    ValueError: a model has another one, or ends its turns with other ids.
  """
  folders = {
    name: hub.find(spec.path, spec.get('revision'))
    for name, spec in config.models.items()
    if 'path' in spec
  }
  where = config.tokenizer or next(iter(folders.values()), 'builtin')
  if where == 'builtin':
    tokenizer = builtin_tokenizer()
    stops = {tokenizer.eos_token_id}
  else:
    where = hub.find(where)
    tokenizer = hf.load_tokenizer(where)
    stops = {*hf.stop_ids(where, tokenizer)}
  for name, folder in folders.items():
    other = hf.load_tokenizer(folder)
    if other.get_vocab() != tokenizer.get_vocab():
      raise ValueError(
        f'the tokenizer of model {name!r} ({folder}) is not that of {where}:'
        ' student and teacher must share every token id'
      )
    if not stops & {*(others := hf.stop_ids(folder, other))}:
      raise ValueError(
        f'model {name!r} ({folder}) stops at {list(others)}, {where} at'
        f' {sorted(stops)}: a student would never learn to stop; correct'
        ' generation_config.json'
      )
  return where, tokenizer, stops

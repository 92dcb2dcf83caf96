"""Models by their name on the Hugging Face hub: found here, or fetched once."""

import os
import re

# What `hf` reads. Weights that need a pickle, other formats beside the same
# weights, and folders of originals are left where they are.
_WANTED = ('model*.safetensors', '*.json', '*.jinja', '*.txt', '*.model')
_LEFT = ('*/*',)
_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[\w.-]+')


def find(path: str, revision: str | None = None) -> str:
  """Returns the local folder of a model.

  Args:
    path: a folder, which is returned as it is, or else a name of the hub such
      as 'Qwen/Qwen3-1.7B'; its configuration, tokenizer and safetensors are
      then fetched into the hub's cache, if they are not there yet.
    revision: branch, tag or commit of a name of the hub; the main branch by
      default.

  Returns:
    The folder. A path that is neither is returned too, for its reader to
    refuse.

  Raises: FileNotFoundError when the hub cannot be reached or has no such
    model; ValueError for a revision of a local folder.
  """
  if os.path.isdir(path) or not _NAME.fullmatch(path):
    if revision:
      raise ValueError(
        f'revision is {revision!r}, but {path} is a local path, which has none:'
        ' remove it'
      )
    return path
  # Takes long, and most runs have their models at hand.
  import huggingface_hub

  try:
    return huggingface_hub.snapshot_download(
      path, revision=revision, allow_patterns=_WANTED, ignore_patterns=_LEFT
    )
  except Exception as error:
    # Those of the hub, of the network below it, of the disk.
    reason = str(error).strip().partition('\n')[0]
    raise FileNotFoundError(
      f'{path} is no folder here, and was not had from the hub'
      f' ({type(error).__name__}: {reason}): correct the name, or where there'
      f' is a network run `hf download {path} --local-dir={path}` and bring the'
      ' folder here'
    ) from error

"""Models by their name on the Hugging Face Hub, downloaded once."""

import os
import re

# The files that `hf` reads. Pickled weights, other formats and subfolders are
# not downloaded.
_WANTED = ('model*.safetensors', '*.json', '*.jinja', '*.txt', '*.model')
_LEFT = ('*/*',)
_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[\w.-]+')


def find(path: str, revision: str | None = None) -> str:
  """Returns the local folder of a model.

  Args:
    path: a folder, which is returned unchanged, or a name on the Hub such as
      'Qwen/Qwen3-1.7B', whose configuration, tokenizer and safetensors are
      downloaded into the Hub's cache unless they are there.
    revision: branch, tag or commit on the Hub; the main branch by default.

  Returns:
    The folder. A path that is neither is returned unchanged.

  Raises: FileNotFoundError when the Hub cannot be reached or has no such
    model; ValueError for a revision of a local folder.
  """
  if os.path.isdir(path) or not _NAME.fullmatch(path):
    if revision:
      raise ValueError(
        f'revision is {revision!r}, but {path} is a local path: remove revision'
      )
    return path
  # A late import, since it is slow and local folders do not need it.
  import huggingface_hub

  try:
    return huggingface_hub.snapshot_download(
      path, revision=revision, allow_patterns=_WANTED, ignore_patterns=_LEFT
    )
  except Exception as error:
    # Errors of the Hub, of the network, or of the disk.
    reason = str(error).strip().partition('\n')[0]
    raise FileNotFoundError(
      f'{path} is not a local folder and could not be downloaded from the Hub'
      f' ({type(error).__name__}: {reason}): correct the name, or run'
      f' `hf download {path} --local-dir={path}` on a machine with network'
      ' access and copy the folder'
    ) from error

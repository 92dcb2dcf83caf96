"""What the files of a finished folder hold: the size and SHA-256 of each.

A manifest is written last, so it also says that the folder is finished. Disks
and copies change bytes without a word, and so do those who read them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import pathlib

NAME = 'manifest.json'
_BLOCK = 2**22  # bytes read at a time


def describe(folder: pathlib.Path, parts: Sequence[str] = ('.',)) -> dict:
  """The manifest of what lies in a folder now; reads every byte.

  Args:
    folder: its manifest, if it has one, is left out.
    parts: files and folders of it that belong to the manifest.

  Returns:
    {'files': {path in the folder: {'bytes': n, 'sha256': hex}}}, as JSON has
    it, sorted.
  """
  found = []
  for part in parts:
    root = folder / part
    found += [root] if root.is_file() else root.rglob('*')
  files = sorted(p for p in found if p.is_file() and p != folder / NAME)
  # Hashing and reading leave other threads alone.
  with ThreadPoolExecutor() as pool:
    digests = pool.map(_sha256, files)
    return {
      'files': {
        path.relative_to(folder).as_posix(): {
          'bytes': path.stat().st_size,
          'sha256': digest,
        }
        for path, digest in zip(files, digests, strict=True)
      }
    }


def damage(folder: pathlib.Path) -> str:
  """What is not as the manifest of a folder says; '' if all is.

  Files that it does not name do not matter: nobody who wrote it will read them.

  Args:
    folder: with its manifest in `manifest.json`.

  Returns:
    One reason, with the name of the file.
  """
  path = folder / NAME
  if not path.is_file():
    return f'{NAME} is missing'
  try:
    files = json.loads(path.read_bytes())['files']
    expected = {n: (f['bytes'], f['sha256']) for n, f in files.items()}
  except (ValueError, KeyError, TypeError, AttributeError):
    return f'{NAME} cannot be read'
  if not expected:
    return f'{NAME} names no file'
  for name, (size, _) in expected.items():
    file = folder / name
    if not file.is_file():
      return f'{name} is missing'
    if file.stat().st_size != size:
      return f'{name} has {file.stat().st_size} bytes instead of {size}'
  with ThreadPoolExecutor() as pool:
    digests = pool.map(_sha256, [folder / name for name in expected])
    for (name, (_, sha256)), digest in zip(
      expected.items(), digests, strict=True
    ):
      if digest != sha256:
        return f'{name} has other bytes than were written'
  return ''


def _sha256(path: pathlib.Path) -> str:
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()

"""Fills a real, small disk under a run, and reports what is lost.

  sudo python benchmarks/full_disk.py

Mounts a file system of few MiB in memory, which takes root, and puts a run of
`jopd train` on it that saves at every step. Room is left for a few checkpoints,
then for none. The run must end with exit code 4 and one line; the checkpoint
before must be whole and no half one taken for it; and when there is room again,
the same command must end with the bytes of a run that had room from the start.
One JSON line.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
RUN = 'import sys; from jopd.cli.main import run; run(sys.argv[1:])'
TINY = HERE.parent / 'tests' / 'tiny.py'


def main():
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--mebibytes', type=int, default=4)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    roomy, small = pathlib.Path(folder, 'roomy'), pathlib.Path(folder, 'small')
    train(roomy)
    small.mkdir()
    options = f'size={args.mebibytes}m'
    mount = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(small)]
    subprocess.run(mount, check=True)
    try:
      print(json.dumps(fill(small, roomy)))
    finally:
      subprocess.run(['umount', str(small)], check=True)


def train(workdir):
  """`jopd train` in a process of its own: its exit code and its last line."""
  done = subprocess.run(
    [
      *(sys.executable, '-c', RUN, 'train', f'--config={TINY}'),
      *(f'--workdir={workdir}', '--config.checkpoint.every=1'),
      *('--config.distil.steps=6', '--config.mesh.data=1'),
    ],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1'},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stderr.splitlines()


def fill(small, roomy):
  """Starts a run where a file leaves no room, removes it, and starts again."""
  from jopd.train.checkpoint import examine

  workdir = small / 'run'
  ballast = small / 'ballast'
  size = 600_000  # room for some checkpoints
  room = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
  ballast.write_bytes(b'x' * (room - size))
  code, said = train(workdir)
  messages = [line for line in said if line.startswith('jopd train')]
  found = {'exit_code': code, 'says': messages}
  (small.parent / 'said').write_text('\n'.join(said))
  found['warnings_of_logs'] = sum('rows wait' in line for line in said)
  stages = {
    p.parent.name: examine(p) for p in sorted(workdir.glob('*/checkpoints'))
  }
  found['whole'] = {name: steps for name, (steps, _) in stages.items()}
  found['damaged'] = {n: wrong for n, (_, wrong) in stages.items() if wrong}
  ballast.unlink()
  found['exit_code_with_room'], _ = train(workdir)
  digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
  found['same_bytes'] = all(
    digest(workdir / name) == digest(roomy / name)
    for name in ('metrics.jsonl', 'distil/model/model.safetensors')
  )
  return found


if __name__ == '__main__':
  main()

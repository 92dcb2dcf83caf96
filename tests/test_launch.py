"""Launch scripts do what their help says, against stand-ins for the tools."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ['launch/local.sh', 'launch/gpu.sh', 'launch/slurm.sh']
SCRIPTS += ['launch/tpu_pod.sh', 'launch/xpk.sh', 'tpu_setup.sh']
ARGUMENTS = ['--config=configs/a b.py', "--config.note=it's $HOME", '']


@pytest.fixture
def tools(tmp_path):
  """A folder first on PATH, and a way to put stand-ins there that log calls."""
  folder = tmp_path / 'tools'
  folder.mkdir()

  def stand_in(path, then=''):
    path = folder / path
    path.parent.mkdir(parents=True, exist_ok=True)
    # One line per call: its arguments, each between brackets.
    path.write_text(
      '#!/usr/bin/env bash\n'
      f'{{ printf "{path.name}"; printf " [%s]" "$@"; echo; }}'
      f' >> {tmp_path}/calls\n{then}\n'
    )
    path.chmod(0o755)
    return path

  return stand_in


def run(script, *arguments, tmp_path, root=ROOT, check=True, **environment):
  path = f'{tmp_path}/tools:{os.environ["PATH"]}'
  return subprocess.run(
    ['bash', str(root / script), *arguments],
    env={**os.environ, 'PATH': path, 'TMPDIR': str(tmp_path), **environment},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=check,
    timeout=30,
  )


def calls(tmp_path):
  return (tmp_path / 'calls').read_text()


def bracketed(*arguments):
  return ' '.join(f'[{argument}]' for argument in arguments)


@pytest.mark.parametrize('script', SCRIPTS)
def test_script_is_valid_and_helps(script, tmp_path):
  # Kills: a syntax error, and a --help that starts to install things.
  subprocess.run(['bash', '-n', str(ROOT / script)], check=True)
  done = run(script, '--help', tmp_path=tmp_path)
  assert script in done.stdout and 'set -e' not in done.stdout
  assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize('script', SCRIPTS)
def test_shellcheck_finds_nothing(script):
  # Kills: an unquoted "$@", which would split 'a b' in two.
  # The test extra puts it beside Python, which need not be on the PATH.
  beside = pathlib.Path(sys.executable).parent
  path = f'{beside}{os.pathsep}{os.environ["PATH"]}'
  if not (checker := shutil.which('shellcheck', path=path)):
    pytest.skip('shellcheck is not installed')
  subprocess.run([checker, str(ROOT / script)], check=True)


@pytest.mark.parametrize(
  'script, extra', [('launch/local.sh', '.'), ('launch/gpu.sh', '.[gpu]')]
)
def test_first_call_installs_and_each_call_trains(
  script, extra, tmp_path, tools
):
  # Kills: installing at every start, and training with split arguments.
  venv = tmp_path / 'venv'
  tools('nvidia-smi')
  tools('jopd')
  pip = tools('pip', then=f'cp {tmp_path}/tools/jopd {venv}/bin/jopd')
  python = tools('py', then=f'mkdir -p {venv}/bin; cp {pip} {venv}/bin/python')
  for _ in range(2):
    run(script, *ARGUMENTS, tmp_path=tmp_path, VENV=str(venv), PYTHON=python)
  trained = 'jopd ' + bracketed('train', *ARGUMENTS)
  assert [
    line for line in calls(tmp_path).splitlines() if 'nvidia' not in line
  ] == [
    'py ' + bracketed('-m', 'venv', str(venv)),
    'pip ' + bracketed('-m', 'pip', 'install', '--quiet', '--editable', extra),
    trained,
    trained,
  ]


@pytest.mark.parametrize('script', ['launch/local.sh', 'launch/gpu.sh'])
def test_a_failed_installation_is_tried_again(script, tmp_path, tools):
  # Kills: taking a folder that exists for one that is complete.
  venv = tmp_path / 'venv'
  tools('nvidia-smi')
  pip = tools('pip', then='exit 1')
  python = tools('py', then=f'mkdir -p {venv}/bin; cp {pip} {venv}/bin/python')
  for _ in range(2):
    done = run(
      *(script, 'x'),
      **dict(tmp_path=tmp_path, check=False, VENV=str(venv), PYTHON=python),
    )
    assert done.returncode == 1
  assert calls(tmp_path).count('[install]') == 2


def test_gpu_without_a_driver_stops_before_it_installs(tmp_path, tools):
  # Kills: falling back to the CPU in silence.
  tools('nvidia-smi', then='exit 9')
  python = tools('py')
  done = run(
    *('launch/gpu.sh', 'x'),
    **dict(tmp_path=tmp_path, check=False, PYTHON=python),
  )
  assert done.returncode == 1 and 'no usable GPU' in done.stderr
  assert 'py' not in calls(tmp_path).split()


@pytest.fixture
def repository(tmp_path):
  """A repository of one commit that holds the script, and the commit's name."""
  if not shutil.which('git'):
    pytest.skip('git is not installed')
  root = tmp_path / 'repository'
  (root / 'launch').mkdir(parents=True)
  for script in ('tpu_pod.sh', 'xpk.sh'):
    shutil.copy(ROOT / 'launch' / script, root / 'launch')
  (root / 'file').write_text('committed')
  git = ['git', '-C', str(root), '-c', 'user.name=n', '-c', 'user.email=e']
  for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'm']):
    subprocess.run([*git, *command], check=True)
  (root / 'file').write_text('changed')
  name = subprocess.run(
    [*git, 'rev-parse', '--short', 'HEAD'],
    **dict(check=True, capture_output=True, text=True),
  )
  return root, name.stdout.strip()


POD = ['launch/tpu_pod.sh', '--name=pod', '--zone=z-a', '--project=p']


def test_pod_sends_a_commit_and_trains_once_on_all_workers(
  tmp_path, tools, repository
):
  # Kills: one ssh per worker, a project that is not passed on, sending the
  # working tree instead of the commit.
  root, commit = repository
  tools('gcloud')
  done = run(*POD, '--', *ARGUMENTS, tmp_path=tmp_path, root=root)
  where = bracketed('--zone=z-a', '--worker=all', '--project=p')
  scp, ssh, *command = calls(tmp_path).splitlines()
  archive = f'{tmp_path}/jopd-{commit}.tar.gz'
  prefix = 'gcloud ' + bracketed('compute', 'tpus', 'tpu-vm')
  assert scp == f'{prefix} ' + bracketed('scp', archive, 'pod:') + f' {where}'
  assert ssh == f'{prefix} ' + bracketed('ssh', 'pod') + f' {where} [--command='
  assert len(command) == 2 and 'uncommitted' in done.stderr
  sent = ['tar', '-xzOf', archive, 'file']
  assert subprocess.check_output(sent, text=True) == 'committed'


def test_pod_command_unpacks_sets_up_and_trains_on_a_host(
  tmp_path, tools, repository
):
  # Kills: quoting that does not survive the second shell, as on a host.
  root, commit = repository
  tools('gcloud', then='for last; do :; done; echo "${last#--command=}" > cmd')
  run(*POD, '--', *ARGUMENTS, tmp_path=tmp_path, root=root)
  home = tmp_path / f'jopd-{commit}'
  (home / '.venv-tpu/bin').mkdir(parents=True)
  shutil.copy(tools('jopd'), home / '.venv-tpu/bin')
  (home / 'tpu_setup.sh').write_text(f'echo setup >> {tmp_path}/calls')
  command = (root / 'cmd').read_text()
  subprocess.run(['bash', '-c', command], cwd=tmp_path, check=True)
  assert calls(tmp_path).splitlines()[-2:] == [
    'setup',
    'jopd ' + bracketed('train', '--distributed', *ARGUMENTS),
  ]


def test_pod_dry_run_prints_what_would_run(tmp_path, tools, repository):
  # Kills: a dry run that copies files, or prints what no shell would accept.
  root, commit = repository
  tools('gcloud')
  tail = ['--', *ARGUMENTS]
  printed = run(*POD, '--dry-run', *tail, tmp_path=tmp_path, root=root).stdout
  assert not (tmp_path / 'calls').exists()
  archive = f'{tmp_path}/jopd-{commit}.tar.gz'
  assert printed.splitlines()[:2] == [
    f'git archive --output={archive} HEAD ',
    f'gcloud compute tpus tpu-vm scp {archive} pod: --zone=z-a --worker=all '
    '--project=p ',
  ]
  # Running the printed lines is running the script.
  path = f'{tmp_path}/tools:{os.environ["PATH"]}'
  subprocess.run(
    ['bash', '-ec', printed],
    **dict(cwd=root, check=True, env={**os.environ, 'PATH': path}),
  )
  from_print = calls(tmp_path)
  (tmp_path / 'calls').unlink()
  run(*POD, *tail, tmp_path=tmp_path, root=root)
  assert calls(tmp_path) == from_print


@pytest.mark.parametrize('arguments', [[], ['--name=a', '--'], ['--nmae=a']])
def test_pod_refuses_what_it_cannot_run(arguments, tmp_path, tools):
  # Kills: an empty --zone, and a misspelt flag that is passed over.
  tools('gcloud')
  done = run(
    *('launch/tpu_pod.sh', *arguments),
    **dict(tmp_path=tmp_path, check=False, NAME='', ZONE='', PROJECT=''),
  )
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert not (tmp_path / 'calls').exists()


XPK = ['launch/xpk.sh', '--cluster=c', '--tpu-type=v5litepod-256', '--zone=z-a']


def test_xpk_sends_a_commit_and_starts_again_when_a_host_is_lost(
  tmp_path, tools, repository
):
  # Kills: sending the working tree, arguments that do not survive the second
  # shell, a project that is not passed on, files that stay behind.
  root, commit = repository
  tools(
    'xpk',
    then='for a; do case $a in --script-dir=*) cat "${a#*=}/file" > sent;;'
    ' --command=*) echo "${a#*=}" > cmd; esac; done',
  )
  run(*XPK, '--project=p', '--', *ARGUMENTS, tmp_path=tmp_path, root=root)
  assert (root / 'sent').read_text() == 'committed'
  asked = calls(tmp_path)
  assert asked.startswith(
    'xpk [workload] [create] [--cluster=c] [--tpu-type=v5litepod-256]'
    f' [--zone=z-a] [--workload=jopd-{commit}] [--max-restarts=10]'
  )
  assert '[--project=p]' in asked
  (tmp_path / '.venv-tpu/bin').mkdir(parents=True)
  shutil.copy(tools('jopd'), tmp_path / '.venv-tpu/bin')
  (tmp_path / 'tpu_setup.sh').write_text(f'echo setup >> {tmp_path}/calls')
  command = (root / 'cmd').read_text()
  subprocess.run(['bash', '-c', command], cwd=tmp_path, check=True)
  assert calls(tmp_path).splitlines()[-2:] == [
    'setup',
    'jopd ' + bracketed('train', '--distributed', *ARGUMENTS),
  ]


def test_xpk_dry_run_starts_nothing(tmp_path, tools, repository):
  root, _ = repository
  tools('xpk')
  done = run(*XPK, '--dry-run', '--', 'x', tmp_path=tmp_path, root=root)
  assert done.stdout.startswith('xpk workload create --cluster=c ')
  assert not (tmp_path / 'calls').exists()
  for wrong in (XPK, ['launch/xpk.sh', '--', 'x'], [XPK[0], '--cluter=c']):
    done = run(*wrong, tmp_path=tmp_path, root=root, check=False, ZONE='')
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.fixture
def slurm(tmp_path, tools):
  """Runs slurm.sh as a job would, with a finished installation."""
  root = tmp_path / 'repository'
  (root / '.venv-gpu/bin').mkdir(parents=True)
  (root / 'tpu_setup.sh').touch()
  command = tools('jopd')
  shutil.copy(command, root / '.venv-gpu/bin/jopd')
  tools('scontrol')

  def slurm(srun, *arguments, **environment):
    tools('srun', then=srun)
    job = dict(SLURM_JOB_ID='7', SLURM_SUBMIT_DIR=str(root))
    script = tmp_path / 'spool/slurm_script'  # sbatch runs a copy
    script.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / 'launch/slurm.sh', script)
    return run(
      *('spool/slurm_script', *arguments),
      **dict(tmp_path=tmp_path, root=tmp_path, check=False),
      **(job | environment),
    )

  return slurm


def test_slurm_gives_each_node_one_process_with_all_its_gpus(slurm, tmp_path):
  # Kills: JAX's own rule, one GPU per process, which leaves the others idle;
  # processes that outlive a dead one; split arguments.
  done = slurm(
    f'echo "$JAX_LOCAL_DEVICE_IDS" > {tmp_path}/gpus; shift 2; "$@"',
    *ARGUMENTS,
    SLURM_GPUS_ON_NODE='4',
  )
  assert done.returncode == 0, done.stderr
  srun, jopd = calls(tmp_path).splitlines()
  trains = bracketed('train', '--distributed', *ARGUMENTS)
  assert srun == (
    'srun [--ntasks-per-node=1] [--kill-on-bad-exit=1] [.venv-gpu/bin/jopd]'
    f' {trains}'
  )
  assert jopd == f'jopd {trains}'
  assert (tmp_path / 'gpus').read_text() == '0,1,2,3\n'


@pytest.mark.parametrize(
  'status, restarts, queued',
  [
    *((0, 0, False), (1, 0, True), (137, 2, True), (137, 3, False)),
    *((2, 0, False), (4, 0, False), (5, 0, False)),
    *((130, 0, False), (143, 0, False)),
  ],
)
def test_slurm_queues_a_job_again_that_lost_a_process(
  slurm, tmp_path, status, restarts, queued
):
  # Kills: a wrong config, a full disk, a loss that is not finite or a job that
  # was cancelled, tried again; and a lost host that ends all.
  done = slurm(f'exit {status}', 'x', SLURM_RESTART_COUNT=str(restarts))
  assert done.returncode == status
  assert ('scontrol [requeue] [7]' in calls(tmp_path)) == queued


def test_slurm_outside_of_a_job_says_how(slurm, tmp_path):
  done = slurm('', 'x', SLURM_JOB_ID='')
  assert done.returncode == 2 and 'submit it with sbatch' in done.stderr
  assert not (tmp_path / 'calls').exists()

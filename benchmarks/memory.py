"""What the two programs of a step hold, by the TPU compiler. No TPU is needed.

  pip install -e '.[tpu]'
  python benchmarks/memory.py [--model=0.6B] [--topology=v5p:2x2x1] [--rows=8]
  python benchmarks/memory.py --teacher=FOLDER

From shapes alone, for one chip: models of Qwen3's shapes in bfloat16 products,
--rows x (256 prompt + 512 response) tokens, reverse KL of the whole vocabulary
in chunks of 1,024 tokens. MiB:

  args  what the program is given: parameters, optimizer state, batch
  temp  all that it needs besides, at most, at one time

With --teacher, how far a model is from itself when it is kept in fewer bits, on
its own responses to the builtin task: reverse KL in nats per token.
"""

import argparse
from functools import partial
import json
import os

# Without these libtpu queries a metadata server, and complains. What is
# compiled for is the given topology, whatever their values.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # it takes no device

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import optax
from tpu_rollouts import MIB, MODELS

from jopd import losses, sharding
from jopd.data.batching import encode_batch
from jopd.data.sources.tasks import running_sum
from jopd.models import hf, lora
from jopd.models.decoder import make_model
from jopd.models.int8 import quantize_params
from jopd.rollout.decode import make_policy
from jopd.rollout.engine import make_generate
from jopd.rollout.score import score
from jopd.rollout.stop_criteria import make_stops
from jopd.train.learner import cast, make_gradients, make_learn, make_teach
from jopd.train.rollout_batch import RolloutBatch, TeacherInput
from jopd.train.stage import Aggregation
from jopd.train.state import init_state

PROMPT, RESPONSE, CHUNK = 256, 512, 1024
TERMS = {'match': losses.Term(losses.divergence(losses.reverse_kl))}
LORA = lora.Lora(rank=16)
LEARNERS = {  # name -> remat, adapters
  "all parameters, remat='full'": ('full', None),
  "adapters of rank 16, remat='full'": ('full', LORA),
  'the same, base in int8': ('full', LORA._replace(base='int8')),
  "all parameters, remat='dots'": ('dots', None),
  "adapters of rank 16, remat='dots'": ('dots', LORA),
  'all parameters': ('', None),
}


def make_batch(rows, hidden=None):
  """Shapes of a batch, with the teacher's hidden states if they are given."""
  array = jax.ShapeDtypeStruct
  prompt = array((rows, PROMPT), jnp.int32), array((rows,), jnp.int32)
  return RolloutBatch(
    *prompt,
    response=array((rows, RESPONSE), jnp.int32),
    response_length=array((rows,), jnp.int32),
    mask=array((rows, RESPONSE), bool),
    end_reason=array((rows,), jnp.int32),
    row=losses.Row(),
    teachers={'teacher': TeacherInput(*prompt, hidden)},
    sampler_logp=array((rows, RESPONSE), jnp.float32),
  )


def frozen(model, dtype):
  """Shapes of parameters as they are kept when nothing changes them."""

  def make(key):
    params = model.init(key)
    if dtype == 'int8':
      params = quantize_params(params, model.axes)
    return cast(params, jnp.bfloat16)

  return jax.eval_shape(make, jax.random.key(0))


def compiled(where, function, *shapes, **options):
  """{'args', 'temp'} of a program on the device."""
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  lowered = jax.jit(function, **options).lower(*jax.tree.map(place, shapes))
  memory = lowered.compile().memory_analysis()
  return {
    'args': round(memory.argument_size_in_bytes / MIB),
    'temp': round(memory.temp_size_in_bytes / MIB),
  }


def learner(where, config, rows, remat, adapters):
  """The learner's memory."""
  model, teacher = make_model(config, remat=remat), make_model(config)
  tx = optax.adam(1e-3)
  init = partial(lora.init, model, adapters) if adapters else model.init
  state = jax.eval_shape(
    lambda key: init_state(init(key), tx), jax.random.key(0)
  )
  gradients = make_gradients(
    model,
    {'teacher': teacher},
    lambda scalars: TERMS,
    aggregation=Aggregation(losses.token_mean, jnp.sum),
    compute_dtype=jnp.bfloat16,
    chunk_tokens=CHUNK,
    attach=adapters and partial(lora.attach, lora=adapters),
  )
  hidden = jax.ShapeDtypeStruct((1, rows, RESPONSE, config.embed), jnp.bfloat16)
  base = [frozen(model, adapters.base)] if adapters else []
  heads = {'teacher': jax.eval_shape(teacher.head, frozen(teacher, ''))}
  inputs = state, heads, make_batch(rows, hidden), *base
  return compiled(where, make_learn(gradients, tx), *inputs, donate_argnums=0)


def teacher(where, config, rows, dtype):
  """The memory of the teacher's program."""
  model = make_model(config)
  teach = make_teach({'teacher': model}, compute_dtype=jnp.bfloat16)
  return compiled(
    where, teach, {'teacher': frozen(model, dtype)}, make_batch(rows)
  )


def compare(folder):
  """Reverse KL of a model to itself in float32, by dtype, nats per token."""
  tokenizer = hf.load_tokenizer(folder)
  model, params = hf.load(folder, dtype='float32')
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  prompts = encode_batch(
    running_sum(count=256, split='test'), tokenizer, max_prompt_tokens=32
  )
  generate = make_generate(
    make_policy(model, vocab_size=len(tokenizer)), mesh, max_new_tokens=32
  )
  stops = make_stops(hf.stop_ids(folder, tokenizer), tokenizer=tokenizer)
  rollout = generate(
    params,
    prompts.prompt,
    prompts.prompt_length,
    jax.random.key(0),
    stops=stops,
  )
  mask = np.arange(32) < np.asarray(rollout.response_length)[:, None]

  @jax.jit
  def log_probs(params):
    hidden = score(
      model, params, rollout.prompt, rollout.prompt_length, rollout.response
    )
    logits = (hidden @ model.head(params).T).astype(jnp.float32)
    return jax.nn.log_softmax(logits[..., : len(tokenizer)])

  own = log_probs(params)
  kept = {
    'bfloat16': cast(params, jnp.bfloat16),
    'int8': quantize_params(params, model.axes),
  }
  found = {}
  for name, other in kept.items():
    gap = jnp.sum(jnp.exp(own) * (own - log_probs(other)), axis=-1)
    gap = np.asarray(gap, np.float64)[mask]
    found[name] = {'mean': float(gap.mean()), 'largest': float(gap.max())}
  return {'tokens': int(mask.sum()), **found}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--model', default='0.6B', choices=MODELS)
  parser.add_argument('--topology', default='v5p:2x2x1')
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--teacher')
  args = parser.parse_args()
  if args.teacher:
    print(json.dumps(compare(args.teacher)))
    return
  device = topologies.get_topology_desc(args.topology, 'tpu').devices[0]
  where = jax.sharding.SingleDeviceSharding(device)
  config = MODELS[args.model]
  for dtype in ('bfloat16', 'int8'):
    row = teacher(where, config, args.rows, dtype)
    print(json.dumps({'teacher': dtype, **row}), flush=True)
  for name, settings in LEARNERS.items():
    row = learner(where, config, args.rows, *settings)
    print(json.dumps({'learner': name, **row}), flush=True)


if __name__ == '__main__':
  main()

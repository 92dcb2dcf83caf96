"""A stream is what `generate` answers, seen while it is written."""

import jax
import numpy as np

from jopd import sharding
from jopd.cli.stream import Written, make_stream, texts
from jopd.data.tokenizer import builtin_tokenizer
from jopd.models.decoder import DecoderConfig, make_model
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.decode import make_policy
from jopd.rollout.engine import make_generate
from jopd.rollout.stop_criteria import make_stops

ONE = sharding.make_mesh(devices=jax.devices()[:1])
MODEL = make_model(
  DecoderConfig(
    vocab_size=31,
    layers=1,
    embed=16,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp=16,
    qk_norm=True,
    init_scale=0.3,
  )
)
TOKENIZER = builtin_tokenizer()


# Kills: other keys than those of `generate`, a state whose buffers are given
# away before they are read, answers that only come when they are whole, and a
# second compilation for the second token.
def test_it_is_what_generate_answers_token_by_token(caplog):
  caplog.set_level('INFO', 'jopd.compilation')
  options = dict(max_new_tokens=12, group_size=3)
  settings = dict(stops=make_stops((3, 9)), temperature=1.5)
  call = (
    MODEL.init(jax.random.key(0)),
    np.array([[5, 7, 1], [2, 0, 0]]),
    np.array([3, 1]),
    jax.random.key(7),
  )
  generate = make_generate(MODEL, ONE, **options)
  stream = make_stream(make_policy(MODEL), ONE, **options)
  whole = jax.device_get(generate(*call, **settings))
  steps = list(stream(*call, **settings))
  before = np.zeros(6, np.int32)
  for step in steps:
    assert set(step.length - before) <= {0, 1}
    live = np.arange(12) < step.length[:, None]
    np.testing.assert_array_equal(
      step.response, np.where(live, whole.response, 0)
    )
    before = step.length
  assert steps[0].length.sum() == 6
  np.testing.assert_array_equal(steps[-1].length, whole.response_length)
  np.testing.assert_array_equal(steps[-1].end_reason, whole.end_reason)
  # The whole rollout, the prompt, and a token.
  assert len(caplog.records) == 3


def written(*rows):
  """A row is its tokens and how it ended."""
  response = np.zeros((len(rows), 50), np.int32)
  for i, (tokens, _) in enumerate(rows):
    response[i, : len(tokens)] = tokens
  lengths = [len(tokens) for tokens, _ in rows]
  return Written(response, np.array(lengths), np.array([e for _, e in rows]))


def pieces(tokens):
  """What is said after each token, and at the end."""
  steps = [written((tokens[: n + 1], 0)) for n in range(len(tokens))]
  return list(texts(TOKENIZER, [*steps, written((tokens, STOP))]))


# Kills: decoding token by token, and printing what a character begins with.
def test_characters_come_whole():
  text = 'naïve € 漢字 🙂🙂'
  tokens = TOKENIZER.encode(text)
  assert len(tokens) > len(text)  # most characters are several tokens
  said = pieces(tokens)
  assert ''.join(said) == text + '\n'
  assert all('\ufffd' not in piece for piece in said)
  assert said[0] == 'n'  # at once


# Kills: holding back for ever what is never going to be a character.
def test_bytes_that_are_no_text_are_said_in_the_end():
  first, *_ = TOKENIZER.encode('€')
  a, b = TOKENIZER.encode('1 2')
  said = pieces([a, first, b, first])
  assert said == ['1', '', '\ufffd 2', '', '\ufffd', '\n']


# Kills: the name of the token that ends a turn in the text.
def test_special_tokens_are_left_out():
  tokens = [*TOKENIZER.encode('ab'), TOKENIZER.eos_token_id]
  assert ''.join(pieces(tokens)) == 'ab\n'


# Kills: answers in the order in which they end, and mixed text of several.
def test_answers_follow_one_another():
  a, b = TOKENIZER.encode('1 2')
  steps = [
    written(([a], 0), ([b], STOP), ([a], 0)),
    written(([a, a], 0), ([b], STOP), ([a], 0)),
    written(([a, a, b], STOP), ([b], STOP), ([a, b], 0)),
    written(([a, a, b], STOP), ([b], STOP), ([a, b, b], STOP)),
  ]
  said = list(texts(TOKENIZER, steps))
  assert ''.join(said[:2]) == '11'
  assert ''.join(said) == '11 2\n 2\n1 2 2\n'

"""Stop rules, against decoding the text after every token and looking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers

from jopd.data.tokenizer import builtin_tokenizer, train_tokenizer
from jopd.rollout.stop_criteria import make_stops, step

_step = jax.jit(step)

TEXTS = ['aab aaab abab', '###\n\n## #', 'naïve € 漢字 🙂🙂', 'x</a> </a>']


def byte_level():
  """Like Qwen's: byte-level BPE, with special tokens and one that is not."""
  tokenizer = train_tokenizer(TEXTS * 9, vocab_size=300)
  tokenizer.add_tokens(['<think>'])
  return tokenizer


def sentencepiece():
  """Like Llama 2's: '▁' for a space, and bytes for what has no token."""
  pieces = ['<unk>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
  pieces += ['▁', *'abx</>#é', '▁a', 'ab', '##', '</', '漢']
  merges = [('▁', 'a'), ('a', 'b'), ('#', '#'), ('<', '/')]
  core = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {piece: n for n, piece in enumerate(pieces)},
      merges,
      unk_token='<unk>',
      byte_fallback=True,
    )
  )
  core.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Prepend('▁'),
      tokenizers.normalizers.Replace(' ', '▁'),
    ]
  )
  decoders = tokenizers.decoders
  core.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, eos_token='</s>', unk_token='<unk>'
  )


@pytest.fixture(scope='module', params=[byte_level, sentencepiece])
def tokenizer(request):
  return request.param()


def ends(stops, tokens):
  """Index of the first token that ends each row of [B, T], T where none."""
  tokens = jnp.asarray(tokens)
  state = jnp.zeros(len(tokens), jnp.int32)
  ended = []
  for t in range(tokens.shape[1]):
    state, now = _step(stops, state, tokens[:, t])
    ended.append(now)
  ended = np.stack([*ended, np.ones(len(tokens), bool)], axis=1)
  return ended.argmax(axis=1)


def reference(tokenizer, strings, tokens):
  """The same, by the text of every beginning."""

  def end(row):
    for t in range(len(row)):
      text = tokenizer.decode(row[: t + 1], skip_special_tokens=True)
      if any(string in text for string in strings):
        return t
    return len(row)

  return [end(row.tolist()) for row in tokens]


def pieces_of(tokenizer, strings):
  """The tokens that could take part in one of the strings."""
  parts = {s[i:j] for s in strings for i in range(len(s)) for j in range(i, 9)}
  return sorted({i for part in parts for i in tokenizer.encode(part)})


STRINGS = {
  'one letter': ['b'],
  'across tokens': ['</a>'],
  'overlapping itself': ['aabaaab'],
  'a border inside a token': ['b a'],
  'unicode of three and four bytes': ['漢字', '€ 🙂'],
  'several, one inside another': ['abab', 'ba', '##\n#'],
  'several that share a beginning': ['aab', 'aaab', 'aaaa#'],
  'one that ends as another begins': ['xab', 'abba', 'bb#'],
}


# Kills: comparing token ids, starting over after a false start (KMP without
# its failures), and looking at the last token or at whole characters only.
@pytest.mark.parametrize('strings', STRINGS.values(), ids=STRINGS)
def test_a_string_ends_a_row_where_its_text_holds_it(tokenizer, strings):
  random = np.random.default_rng(0)
  parts = pieces_of(tokenizer, strings)
  special = tokenizer.eos_token_id
  # Half of the rows spell a string somewhere, cut as the tokenizer never would.
  rows = random.choice(parts, (60, 24))
  for row in rows[::2]:
    content = random.choice(strings)
    cut = random.integers(len(content) + 1)
    spelled = [
      *tokenizer.encode(content[:cut], add_special_tokens=False),
      special,
      *tokenizer.encode(content[cut:], add_special_tokens=False),
    ]
    place = random.integers(1, len(row) - len(spelled))
    row[place : place + len(spelled)] = spelled
  want = reference(tokenizer, strings, rows)
  assert np.mean(np.array(want) < 24) > 0.1
  stops = make_stops([], strings=strings, tokenizer=tokenizer)
  np.testing.assert_array_equal(ends(stops, rows), want)


# Kills: 'ends with' for 'contains': the string may end inside of a token.
def test_a_string_inside_of_one_token_ends_the_row():
  tokenizer = builtin_tokenizer()
  [token] = tokenizer.encode('assistant')
  stops = make_stops([], strings=['sis'], tokenizer=tokenizer)
  assert ends(stops, [[token]]) == 0
  stops = make_stops([], strings=['tab'], tokenizer=tokenizer)
  assert ends(stops, [[token, *tokenizer.encode('ab')]]) == 2


# Kills: an end that the next token leaves, so that a loop which looks at the
# state of a finished row sees it alive again.
def test_a_row_that_has_ended_stays_so(tokenizer):
  stops = make_stops([], strings=['ab'], tokenizer=tokenizer)
  tokens = jnp.arange(len(tokenizer))
  end = jnp.full(len(tokens), int(np.flatnonzero(stops.accept)[0]))
  state, ended = _step(stops, end, tokens)
  assert ended.all()
  np.testing.assert_array_equal(state, end)


# Kills: the text '<|im_end|>' or '</s>' as what a special token says.
def test_special_tokens_and_unknown_ones_leave_the_text_as_it_is(tokenizer):
  size = len(tokenizer) + 7
  stops = make_stops([], strings=['/s>'], tokenizer=tokenizer, vocab_size=size)
  assert stops.table.shape == (size, 16)
  for token in (tokenizer.eos_token_id, size - 1):
    np.testing.assert_array_equal(stops.table[token], np.arange(16))


def test_a_token_that_is_added_but_not_special_is_text():
  tokenizer = byte_level()
  [token] = tokenizer.encode('<think>')
  stops = make_stops([], strings=['think>'], tokenizer=tokenizer)
  assert ends(stops, [[token]]) == 0


# Kills: waiting for the text of a token that the text leaves out.
def test_a_string_that_is_a_special_token_is_its_id(tokenizer):
  eos = tokenizer.eos_token
  stops = make_stops([5], strings=[eos, 'ab'], tokenizer=tokenizer)
  assert stops.ids.tolist() == [5, tokenizer.eos_token_id, -1, -1]
  assert stops.table.shape[1] == 16
  stops = make_stops([], strings=[eos], tokenizer=tokenizer)
  assert stops.ids[0] == tokenizer.eos_token_id
  assert stops.table.shape == (1, 1)


# Kills: a match of the padding, and an index beyond the [1, 1] table.
def test_ids_alone_end_a_row_at_each_of_them():
  stops = make_stops([3, 300_000])
  assert stops.table.shape == (1, 1) and not stops.accept.any()
  rows = [[0, 3, 5], [7, 7, 300_000], [1, 2, 4], [3, 0, 0]]
  np.testing.assert_array_equal(ends(stops, rows), [1, 2, 3, 0])
  np.testing.assert_array_equal(ends(make_stops([]), rows), [3] * 4)
  # The rule looks at the token, and remembers nothing.
  state, ended = step(stops, jnp.zeros(1, jnp.int32), jnp.array([400_000]))
  assert (state.tolist(), ended.tolist()) == ([0], [False])


def test_ids_and_strings_work_together():
  tokenizer = byte_level()
  a, b, other = (tokenizer.encode(letter)[0] for letter in 'ab#')
  stops = make_stops([other], strings=['ab'], tokenizer=tokenizer)
  rows = [[a, b, other], [a, other, b], [b, a, a]]
  np.testing.assert_array_equal(ends(stops, rows), [1, 1, 3])


def test_a_string_that_never_occurs_ends_nothing(tokenizer):
  stops = make_stops([], strings=['never of these'], tokenizer=tokenizer)
  rows = np.random.default_rng(1).integers(0, len(tokenizer), (8, 50))
  assert (ends(stops, rows) == 50).all()


# Kills: shapes that follow the number of states or ids to the byte.
def test_other_strings_and_ids_compile_nothing(tokenizer):
  traces = []

  @jax.jit
  def counted(*args):
    traces.append(0)
    return step(*args)

  for ids, strings in (
    ([], ['ab']),
    ([1], ['</a>', '##\n']),
    ([1, 2, 3, 4], ['fifteen letters']),
  ):
    stops = make_stops(ids, strings=strings, tokenizer=tokenizer)
    counted(stops, jnp.zeros(4, jnp.int32), jnp.arange(4))
  assert len(traces) == 1


@pytest.mark.parametrize('count, states', [(15, 16), (16, 32), (255, 256)])
def test_states_are_the_bytes_and_the_end(count, states):
  tokenizer = builtin_tokenizer()
  stops = make_stops([], strings=['x' * count], tokenizer=tokenizer)
  assert stops.table.shape == (384, states) and stops.table.dtype == np.int32
  x = tokenizer.encode('x')
  assert ends(stops, [x * (count + 1)]) == count - 1


@pytest.mark.parametrize(
  'ids, strings, message',
  [
    ([], [''], 'a stop string is empty'),
    ([], ['a', '\ud800'], 'lone surrogate'),
    ([], ['a\ufffd'], 'U\\+FFFD'),
    ([], ['x' * 256], '257 states, at most 256'),
    ([384], [], 'stop id 384 is outside of the vocabulary of 384 tokens'),
    ([2, -1], ['a'], 'stop id -1 is outside'),
  ],
)
def test_invalid_stops_are_refused(ids, strings, message):
  tokenizer = builtin_tokenizer()
  with pytest.raises(ValueError, match=message):
    make_stops(ids, strings=strings, tokenizer=tokenizer)


def test_ids_are_checked_without_a_tokenizer_too():
  with pytest.raises(ValueError, match='stop id -1 is outside'):
    make_stops([-1])
  with pytest.raises(ValueError, match=r'id 9 is outside of .* 9 tokens'):
    make_stops([8, 9], vocab_size=9)
  with pytest.raises(ValueError, match='stop strings need the tokenizer'):
    make_stops([], strings=['a'])


# Kills: trusting the names of tokens, which this decoder does not.
def test_a_tokenizer_whose_tokens_are_not_its_text_is_refused():
  pieces = ['[UNK]', 'a', '.', '##b']
  core = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(
      {piece: n for n, piece in enumerate(pieces)}, unk_token='[UNK]'
    )
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  core.decoder = tokenizers.decoders.WordPiece(cleanup=True)
  wordpiece = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
  with pytest.raises(ValueError, match=r"turns 'a \.' into 'a\.'"):
    make_stops([], strings=['a'], tokenizer=wordpiece)
  # Byte C3 is written as two letters, and means one byte.
  core = byte_level()
  core._tokenizer.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace('Ã', 'ÃÃ'),
      tokenizers.decoders.ByteLevel(),
    ]
  )
  with pytest.raises(ValueError, match=r"token \d+, 'Ã', turns 'a' into"):
    make_stops([], strings=['a'], tokenizer=core)

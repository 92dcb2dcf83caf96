"""Stop criteria: token ids, and strings in the text of a response.

Both are arrays, so other stop ids, or strings of similar length, need no new
compilation of the sampler.
"""

from collections.abc import Sequence
import re
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import numpy as np

# The character of each byte in GPT-2's vocabulary: the byte itself if it is
# printable, otherwise the next character from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted({*range(256)} - {*_PRINTABLE})
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}

# The arrays are padded to powers of two of at least these sizes.
_MIN_IDS, _MIN_STATES = 4, 16
# A table of 256 states takes 150 MB at a vocabulary of 150,000.
_MAX_STATES = 256


class Stops(NamedTuple):
  """Stop criteria, from `make_stops`; `step` applies them."""

  ids: Array  # [S] int32 token ids, -1 where padded
  table: Array  # [V, N] int32: the state after token v in state n
  accept: Array  # [N] bool: whether the text contains a stop string


def make_stops(
  stop_ids: Sequence[int],
  *,
  strings: Sequence[str] = (),
  tokenizer=None,
  vocab_size: int | None = None,
) -> Stops:
  r"""Stop criteria from stop ids and stop strings, as arrays on the host.

  A response ends with the first token after which its text, without special
  tokens, contains one of the strings; a string may begin and end inside of
  tokens. An automaton (Aho and Corasick) searches for all strings at once, byte
  by byte of UTF-8. A table holds its transitions for whole tokens.

  Args:
    stop_ids: tokens that end a response; may be empty.
    strings: texts that end a response. A special token becomes its id.
    tokenizer: of transformers; needed for strings only.
    vocab_size: number of tokens that can be sampled. None: that of the
      tokenizer; without a tokenizer, ids have no upper bound.

  Returns:
    `Stops` of NumPy arrays, with S and N padded to powers of two. N is greater
    than the bytes of all strings. Without strings the table is [1, 1].

  Raises:
    ValueError: an id outside of the vocabulary; a string that is empty or
      not valid text; a tokenizer whose tokens are not bytes of the text.

  References: Aho and Corasick, Efficient string matching, 1975.

  Example:
    >>> from jopd.data.tokenizer import builtin_tokenizer
    >>> stops = make_stops([2], strings=['\n\n'], tokenizer=builtin_tokenizer())
    >>> stops.ids
    array([ 2, -1, -1, -1], dtype=int32)
    >>> stops.table.shape
    (384, 16)
  """
  stop_ids, strings = list(stop_ids), list(strings)
  if strings and tokenizer is None:
    raise ValueError('stop strings need the tokenizer')
  if tokenizer is not None:
    vocab_size = vocab_size or len(tokenizer)
    added = tokenizer.added_tokens_decoder.items()
    special = {token.content: i for i, token in added if token.special}
    stop_ids += [special[s] for s in strings if s in special]
    strings = [s for s in strings if s not in special]
  for stop in stop_ids:
    if not 0 <= stop < (vocab_size or np.inf):
      of = f' of {vocab_size} tokens' if vocab_size else ''
      raise ValueError(f'stop id {stop} is outside of the vocabulary{of}')
  ids = np.full(_power_of_two(len(stop_ids), _MIN_IDS), -1, np.int32)
  ids[: len(stop_ids)] = stop_ids
  if not strings:
    return Stops(ids, np.zeros((1, 1), np.int32), np.zeros(1, bool))
  next_state, final = _automaton([_encoded(string) for string in strings])
  table = _by_token(next_state, _token_bytes(tokenizer, vocab_size))
  return Stops(ids, table, np.arange(len(next_state)) == final)


def step(
  stops: Stops, state: Int[Array, 'B'], token: Int[Array, 'B']
) -> tuple[Int[Array, 'B'], Bool[Array, 'B']]:
  """The state of each row after one more token, and whether the row ends.

  Args:
    stops: of `make_stops`, on the host or on devices.
    state: [B] int32, 0 before the first token.
    token: [B] int32.

  Returns:
    `(state, ended)`, both [B]. After a stop string `ended` stays True; after a
    stop id it is True for that token only.
  """
  table, accept, ids = map(jnp.asarray, (stops.table, stops.accept, stops.ids))
  # Without strings the table has one entry, which is used for all tokens.
  state = table.at[token, state].get(mode='clip')
  stopped = jnp.any(token[:, None] == ids[None, :], axis=1)
  return state, accept[state] | stopped


def _power_of_two(count: int, least: int) -> int:
  return max(least, 1 << max(count - 1, 0).bit_length())


def _encoded(string: str) -> bytes:
  """The bytes of a stop string; ValueError if no text contains it."""
  if not string:
    raise ValueError('a stop string is empty: it would end every response')
  if '\ufffd' in string:
    raise ValueError(
      f'stop string {string!r} contains U+FFFD, which stands for bytes that are'
      ' not valid text'
    )
  try:
    return string.encode()
  except UnicodeEncodeError:
    raise ValueError(
      f'stop string {string!r} contains a lone surrogate, which is not valid'
      ' text'
    ) from None


def _automaton(strings: list[bytes]) -> tuple[np.ndarray, int]:
  """The state after each byte in each state, [N, 256], and the final state.

  A state is the longest prefix of a string that the text ends with; state 0 is
  the empty prefix. The final state, after a whole string, is never left.
  """
  prefixes = {string[:n] for string in strings for n in range(len(string))}
  states = {prefix: n for n, prefix in enumerate(sorted(prefixes, key=len))}
  final = len(states)
  size = _power_of_two(final + 1, _MIN_STATES)
  if size > _MAX_STATES:
    raise ValueError(
      f'the stop strings need {final + 1} states, at most {_MAX_STATES} are'
      ' possible: use fewer, or shorter ones'
    )
  next_state = np.zeros((size, 256), np.int32)
  next_state[final:] = final
  for prefix, state in states.items():
    for byte in set(b''.join(strings)):  # other bytes lead to state 0
      text = prefix + bytes([byte])
      if text.endswith(tuple(strings)):
        next_state[state, byte] = final
      else:
        suffixes = (text[n:] for n in range(len(text) + 1))
        next_state[state, byte] = next(
          states[suffix] for suffix in suffixes if suffix in states
        )
  return next_state, final


def _by_token(next_state: np.ndarray, texts: list[bytes]) -> np.ndarray:
  """The state after all bytes of each token in each state, [V, N]."""
  lengths = np.array([len(text) for text in texts])
  table = np.tile(np.arange(len(next_state), dtype=np.int32), (len(texts), 1))
  for i in range(lengths.max(initial=0)):
    longer = np.flatnonzero(lengths > i)
    byte = np.array([texts[token][i] for token in longer])
    table[longer] = next_state[table[longer], byte[:, None]]
  return table


def _token_bytes(tokenizer, vocab_size: int) -> list[bytes]:
  """The bytes that each token adds to a text; none for special tokens."""
  encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
  for text in ('a', 'a .'):
    if (back := tokenizer.decode(encode(text))) != text:
      raise ValueError(
        'stop strings need a tokenizer that restores a text; this one turns'
        f' {text!r} into {back!r}'
      )
  # After another token, since some decoders treat the first one differently.
  texts = tokenizer.batch_decode(
    [[*encode('a'), token] for token in range(vocab_size)],
    skip_special_tokens=True,
  )
  pieces = tokenizer.convert_ids_to_tokens(range(vocab_size))
  tokens = []
  for token, (text, piece) in enumerate(zip(texts, pieces, strict=True)):
    added = text.removeprefix('a')
    content = _bytes_of_piece(piece) if '\ufffd' in added else added.encode()
    if 'a' + content.decode(errors='replace') != text:
      raise ValueError(
        f'stop strings need tokens that are bytes of the text, but token'
        f" {token}, {piece!r}, turns 'a' into {text!r}"
      )
    tokens.append(content)
  return tokens


def _bytes_of_piece(piece: str) -> bytes:
  """The bytes of a token that is not valid text alone, from its name."""
  if re.fullmatch('<0x[0-9A-F]{2}>', piece):
    return bytes([int(piece[3:5], 16)])
  if all(letter in _BYTE_OF for letter in piece):
    return bytes(_BYTE_OF[letter] for letter in piece)
  return piece.encode()

"""What ends a response: token ids, and strings in its text.

All of it is arrays: with other stop ids, or other strings of about the same
length, a compiled sampler compiles nothing.
"""

from collections.abc import Sequence
import re
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import numpy as np

# GPT-2's letter for each byte: itself if it is printable, otherwise the next
# one from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted({*range(256)} - {*_PRINTABLE})
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}

# The arrays are padded to powers of two, and at least to these.
_FEWEST_IDS, _FEWEST_STATES = 4, 16
# A table of 1,024 states takes 600 MB at a vocabulary of 150,000.
_MOST_STATES = 1024


class Stops(NamedTuple):
  """What ends a response: see `make_stops`, and `step` for the rule."""

  ids: Array  # [S] int32 token ids, -1 where padded
  table: Array  # [V, N] int32: the state of the text after token v in state n
  accept: Array  # [N] bool: the text holds a stop string


def make_stops(
  stop_ids: Sequence[int],
  *,
  strings: Sequence[str] = (),
  tokenizer=None,
  vocab_size: int | None = None,
) -> Stops:
  r"""The arrays of stop ids and stop strings, on the host.

  A response ends with the first token after which its text, special tokens
  left out, contains one of the strings, wherever the borders between tokens
  lie. The strings are searched for together, byte by byte, by an automaton
  (Aho and Corasick); what it does on all the bytes of a token is looked up in
  a table.

  Bytes decide, as UTF-8 is written: a string is found once its last byte is.
  Where a tokenizer drops the space that a text begins with, it still counts.

  Args:
    stop_ids: tokens that end a response; there may be none.
    strings: texts that end a response. One that is a special token is taken
      as its id, as the text would never show it.
    tokenizer: of transformers; only strings need it.
    vocab_size: of the tokens that can be picked. None: those of the tokenizer;
      without one, ids have no upper limit.

  Returns:
    `Stops` of NumPy arrays, with S and N padded to powers of two. Without
    strings the table is [1, 1]. With them it takes 4 V N bytes, and N exceeds
    the bytes of all strings together.

  Raises:
    ValueError: an id outside of the vocabulary; a string that is empty or no
      text; a tokenizer whose tokens are not bytes of the text.

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
    raise ValueError('stop strings need the tokenizer, to know what tokens say')
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
  ids = np.full(_power_of_two(len(stop_ids), _FEWEST_IDS), -1, np.int32)
  ids[: len(stop_ids)] = stop_ids
  if not strings:
    return Stops(ids, np.zeros((1, 1), np.int32), np.zeros(1, bool))
  move, end = _automaton([_encoded(string) for string in strings])
  table = _by_token(move, _token_bytes(tokenizer, vocab_size))
  return Stops(ids, table, np.arange(len(move)) == end)


def step(
  stops: Stops, state: Int[Array, 'B'], token: Int[Array, 'B']
) -> tuple[Int[Array, 'B'], Bool[Array, 'B']]:
  """The state of each row's text after one more token, and whether it ends.

  Args:
    stops: of `make_stops`, on the host or on devices.
    state: [B] int32, 0 before the first token.
    token: [B] int32.

  Returns:
    `(state, ended)`, both [B]. A row that a string has ended stays so: its
    state leads nowhere else. A stop id ends a row at that token alone.
  """
  table, accept, ids = map(jnp.asarray, (stops.table, stops.accept, stops.ids))
  # Without strings the table has one entry, for all tokens.
  state = table.at[token, state].get(mode='clip')
  stopped = jnp.any(token[:, None] == ids[None, :], axis=1)
  return state, accept[state] | stopped


def _power_of_two(count: int, fewest: int) -> int:
  return max(fewest, 1 << max(count - 1, 0).bit_length())


def _encoded(string: str) -> bytes:
  """The bytes of a stop string, refused where they could never be found."""
  if not string:
    raise ValueError('a stop string is empty: it would end every response')
  if '\ufffd' in string:
    raise ValueError(
      f'stop string {string!r} holds U+FFFD, which stands for bytes that are'
      ' no text: no response contains it'
    )
  try:
    return string.encode()
  except UnicodeEncodeError:
    raise ValueError(
      f'stop string {string!r} holds a lone surrogate, which is no text'
    ) from None


def _automaton(strings: list[bytes]) -> tuple[np.ndarray, int]:
  """The state after each byte in each state, [N, 256], and the last state.

  A state is the longest beginning of a string that the text ends with; the
  first is the empty one. There is a single end, which is never left.
  """
  found = set(strings)
  begun = {string[:n] for string in found for n in range(len(string))}
  states = {
    b: n for n, b in enumerate(sorted(begun, key=lambda b: (len(b), b)))
  }
  end = len(states)
  size = _power_of_two(end + 1, _FEWEST_STATES)
  if size > _MOST_STATES:
    raise ValueError(
      f'the stop strings need {end + 1} states, at most {_MOST_STATES} are'
      ' possible: use fewer, or shorter ones'
    )
  move = np.full((size, 256), end, np.int32)
  for begin, state in states.items():
    # What a byte does unless it leads on is known from a shorter beginning.
    shorter = (begin[n:] for n in range(1, len(begin) + 1))
    move[state] = next((move[states[s]] for s in shorter if s in states), 0)
    for byte in range(256):
      longer = begin + bytes([byte])
      if longer in found:
        move[state, byte] = end
      elif longer in states and move[state, byte] != end:
        move[state, byte] = states[longer]
  return move, end


def _by_token(move: np.ndarray, texts: list[bytes]) -> np.ndarray:
  """The state after all bytes of each token in each state, [V, N]."""
  lengths = np.array([len(text) for text in texts])
  table = np.tile(np.arange(len(move), dtype=np.int32), (len(texts), 1))
  for place in range(lengths.max(initial=0)):
    longer = np.flatnonzero(lengths > place)
    byte = np.array([texts[token][place] for token in longer])
    table[longer] = move[table[longer], byte[:, None]]
  return table


def _token_bytes(tokenizer, vocab_size: int) -> list[bytes]:
  """What each token adds to a text: nothing for special and unknown ones."""
  encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
  for text in ('a', 'a .'):
    if (back := tokenizer.decode(encode(text))) != text:
      raise ValueError(
        'stop strings need a tokenizer that gives back a text as it was; this'
        f' one turns {text!r} into {back!r}'
      )
  # After another token, as some decoders treat the first one differently.
  texts = tokenizer.batch_decode(
    [[*encode('a'), token] for token in range(vocab_size)],
    skip_special_tokens=True,
  )
  pieces = tokenizer.convert_ids_to_tokens(range(vocab_size))
  tokens = []
  for token, (text, piece) in enumerate(zip(texts, pieces, strict=True)):
    said = text.removeprefix('a')
    content = _bytes_of_piece(piece) if '\ufffd' in said else said.encode()
    if 'a' + content.decode(errors='replace') != text:
      raise ValueError(
        f'stop strings need tokens that are bytes of the text, but token'
        f" {token}, {piece!r}, turns 'a' into {text!r}"
      )
    tokens.append(content)
  return tokens


def _bytes_of_piece(piece: str) -> bytes:
  """The bytes of a token that is no text by itself, as its name spells them."""
  if re.fullmatch('<0x[0-9A-F]{2}>', piece):
    return bytes([int(piece[3:5], 16)])
  if all(letter in _BYTE_OF for letter in piece):
    return bytes(_BYTE_OF[letter] for letter in piece)
  return piece.encode()

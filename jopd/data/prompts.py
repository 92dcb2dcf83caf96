"""Text to token ids: prompts through the chat template, responses without it.

The prompt ends where the model starts to write. The response is what it writes:
its text, then the one token that ends a turn. The two are encoded apart, as
they are when sampling; what the template writes after the turn (the newline of
ChatML) is not part of a response.
"""

from collections.abc import Mapping
import typing

if typing.TYPE_CHECKING:  # imported late: it takes seconds
  import transformers

_Options = Mapping[str, object] | None


def encode_prompt(
  tokenizer: 'transformers.PreTrainedTokenizerBase',
  messages: list[dict],
  *,
  template_kwargs: _Options = None,
) -> list[int]:
  """Token ids of the chat, up to where the assistant starts to write.

  Args:
    tokenizer: any transformers tokenizer with a chat template. No token is
      added that the template does not write.
    messages: chat turns, a user turn last.
    template_kwargs: variables of the template, e.g. {'enable_thinking': False}.

  Raises: ValueError when there is no chat template, when the template knows no
    such variable, or when it refuses the messages.
  """
  text = _render(tokenizer, messages, template_kwargs, prompt=True)
  return tokenizer.encode(text, add_special_tokens=False)


def encode_response(
  tokenizer: 'transformers.PreTrainedTokenizerBase', text: str, *, stop_id: int
) -> list[int]:
  """Token ids of a response, then `stop_id`, which ends it.

  Args:
    tokenizer: as in `encode_prompt`.
    text: of the assistant, without any end-of-turn mark.
    stop_id: usually `turn_end(tokenizer)`.

  Raises: ValueError when the text itself contains the stop token: the model
    would learn to stop there.
  """
  ids = tokenizer.encode(text, add_special_tokens=False)
  if stop_id in ids:
    raise ValueError(
      f'the response contains the stop token {tokenizer.decode([stop_id])!r}: '
      f'{text[:60]!r}; remove it, it is added here'
    )
  return [*ids, stop_id]


def turn_end(
  tokenizer: 'transformers.PreTrainedTokenizerBase',
  *,
  template_kwargs: _Options = None,
) -> int:
  """The id that the chat template writes right after an assistant's text.

  It is the stop token of a chat model, and often not `eos_token_id`: base
  models with a chat template have '<|endoftext|>' there while their turns end
  with '<|im_end|>'.

  Raises: ValueError when the template writes no special token there.
  """
  mark = 'a6f1c'
  turns = [
    {'role': 'user', 'content': 'Hello'},
    {'role': 'assistant', 'content': mark},
  ]
  text = _render(tokenizer, turns, template_kwargs, prompt=False)
  after = text.rpartition(mark)[2]
  ids = tokenizer.encode(after, add_special_tokens=False)
  if not ids or ids[0] not in tokenizer.added_tokens_decoder:
    raise ValueError(
      'the chat template writes no special token after an assistant turn but '
      f'{after!r}: end the turn with the token that stops a response'
    )
  return ids[0]


def check_boundary(
  tokenizer: 'transformers.PreTrainedTokenizerBase',
  messages: list[dict],
  response: str,
  *,
  stop_id: int,
  template_kwargs: _Options = None,
) -> None:
  """Raises unless prompt + response is how the template renders the chat.

  If not, a student that learns demonstrations sees other tokens than a chat
  model on the same text: the template adds or strips something around the text
  of the assistant (a thinking block, spaces), or the tokenizer joins the last
  token of the prompt with the first of the response. What the template writes
  after the stop token is ignored.

  Raises: ValueError with the first place where the two differ.
  """
  apart = encode_prompt(tokenizer, messages, template_kwargs=template_kwargs)
  apart += encode_response(tokenizer, response, stop_id=stop_id)
  turns = [*messages, {'role': 'assistant', 'content': response}]
  text = _render(tokenizer, turns, template_kwargs, prompt=False)
  whole = tokenizer.encode(text, add_special_tokens=False)
  if whole[: len(apart)] == apart:
    return
  pairs = zip(apart, whole, strict=False)
  place = next((i for i, (a, b) in enumerate(pairs) if a != b), len(whole))
  raise ValueError(
    'prompt and response, encoded apart, are not the chat that the template '
    f'renders: after {tokenizer.decode(apart[:place])[-40:]!r} comes '
    f'{tokenizer.decode(apart[place : place + 8])!r}, in the chat '
    f'{tokenizer.decode(whole[place : place + 8])!r}; see template_kwargs'
  )


def _render(tokenizer, messages, template_kwargs, *, prompt: bool) -> str:
  """The chat as text, ready for the assistant if `prompt`.

  A template is untrusted code. Transformers runs it in Jinja's sandbox: it
  cannot reach Python, files or the messages, but it may take long.
  """
  if not tokenizer.chat_template:
    raise ValueError(
      'the tokenizer has no chat template; load that of the chat model, or set '
      'tokenizer.chat_template'
    )
  options = dict(template_kwargs or {})
  # Jinja ignores a variable that the template does not name.
  if unknown := [k for k in options if k not in str(tokenizer.chat_template)]:
    raise ValueError(
      f'the chat template has no variable {", ".join(unknown)}; '
      'see tokenizer.chat_template'
    )
  try:
    return tokenizer.apply_chat_template(
      messages, add_generation_prompt=prompt, tokenize=False, **options
    )
  except Exception as error:  # whatever a program can raise
    text = ' '.join(str(error).split())
    raise ValueError(
      f'the chat template refuses these messages: {text:.300}'
    ) from error

"""Small byte-level tokenizers, trained on the spot without a download."""

from collections.abc import Iterable
import typing

from jopd.data import sources

if typing.TYPE_CHECKING:  # imported late: it takes seconds
  import transformers

# In this order they get the ids 0, 1, 2.
SPECIAL_TOKENS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')

# GPT-2's pieces, but every digit is a piece of its own (with the space before
# it): ' 31' is ' 3', '1', so that a number is always read digit by digit.
_PIECES = (
  r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

# On one line and without a newline after a block tag: Jinja's trim_blocks,
# which transformers sets, would swallow it.
_CHATML = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message['role'] + '\\n' }}"
  "{% if message['role'] == 'assistant' %}"
  "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
  "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
  "{{ '\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_ENGLISH = """\
Question: what is the running sum of the numbers? Answer: add them one by one,
and write the remainder after each step. The answer is the last of the sums.
You are a helpful assistant. Think step by step, then give the final answer.
A student learns from a teacher by reading what it would have said at every
place where the student went another way.
user
assistant
system
"""


def train_tokenizer(
  texts: Iterable[str], *, vocab_size: int
) -> 'transformers.PreTrainedTokenizerFast':
  """A byte-level BPE chat tokenizer, trained on `texts`.

  Every string can be encoded and comes back unchanged, as all 256 bytes are
  tokens. Digits stay single (' 31' is ' 3', '1'). The chat template is ChatML
  and marks the assistant's text for `return_assistant_tokens_mask`; no BOS is
  ever added. `save_pretrained` then `AutoTokenizer.from_pretrained` gives the
  same ids and template.

  Args:
    texts: training text. Frequent pieces become tokens.
    vocab_size: upper limit, at least 259 (three special tokens and 256
      bytes); texts with too few distinct pieces give fewer tokens.

  Returns:
    A tokenizer with pad '<|endoftext|>' (0), '<|im_start|>' (1) and eos
    '<|im_end|>' (2).

  Raises: ValueError when vocab_size cannot hold every byte.

  Example:
    >>> tokenizer = train_tokenizer(['1 2 3 4'] * 9, vocab_size=300)
    >>> tokenizer.tokenize('12 3')
    ['1', '2', 'Ġ3']
  """
  import tokenizers
  import transformers

  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  smallest = len(SPECIAL_TOKENS) + len(alphabet)
  if vocab_size < smallest:
    raise ValueError(
      f'vocab_size must be at least {smallest} to hold every byte and the '
      f'special tokens, got {vocab_size}'
    )
  core = tokenizers.Tokenizer(tokenizers.models.BPE())
  core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(_PIECES), 'isolated'),
      tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
      ),
    ]
  )
  core.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL_TOKENS),
    initial_alphabet=alphabet,
    show_progress=False,
  )
  core.train_from_iterator(texts, trainer)
  pad, start, end = SPECIAL_TOKENS
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    pad_token=pad,
    eos_token=end,
    additional_special_tokens=[start],
    chat_template=_CHATML,
    padding_side='right',
    clean_up_tokenization_spaces=False,
  )


def builtin_tokenizer() -> 'transformers.PreTrainedTokenizerFast':
  """The tokenizer of the builtin tasks: 384 tokens, the same on each call.

  Trained in a moment on text of `sources.running_sum` and a little English:
  each digit with and without its space, ' ####' and the role names are one
  token each; anything else falls back to shorter pieces and bytes.
  """
  texts = [_ENGLISH] * 20
  for modulus in (10, 100):
    for example in sources.running_sum(count=200, modulus=modulus):
      texts += [example.messages[-1]['content'], example.response]
  return train_tokenizer(texts, vocab_size=384)

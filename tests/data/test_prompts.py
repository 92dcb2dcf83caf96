"""Prompts and responses as token ids, with templates that models ship."""

import numpy as np
import pytest

from jopd.data import prompts, sources, tokenizer

USER = [{'role': 'user', 'content': '3 1 4'}]

# As Qwen3's: an assistant's text comes after a thinking block, and with
# thinking switched off the prompt already holds an empty one.
THINKING = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
  "{% if m.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
  "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
  '{% if enable_thinking is defined and enable_thinking is false %}'
  "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
# The parts of Qwen3's own that decide on thoughts: those of earlier turns go.
QWEN3 = """\
{%- if messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- elif message.role == 'assistant' %}
{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
{%- set thoughts = '' %}
{%- if '</think>' in message.content %}
{%- set thoughts = message.content.split('</think>')[0] %}
{%- set thoughts = thoughts.split('<think>')[-1].strip('\\n') %}
{%- endif %}
{%- if loop.last or thoughts %}
{{- '<|im_start|>assistant\\n<think>\\n' + thoughts }}
{{- '\\n</think>\\n\\n' + content }}
{%- else %}
{{- '<|im_start|>assistant\\n' + content }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
# As Gemma's, which knows no system turn; here turns end with another token.
NO_SYSTEM = (
  "{% if messages[0].role == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}"
  '{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}'
)


@pytest.fixture
def chatml():
  return tokenizer.builtin_tokenizer()


def _with_template(tok, template):
  tok.chat_template = template
  return tok


def test_a_prompt_is_what_transformers_tokenizes(chatml):
  ids = prompts.encode_prompt(chatml, USER)
  # Kills: returning the BatchEncoding, or leaving out the assistant's header.
  assert (
    ids
    == chatml.apply_chat_template(
      USER, add_generation_prompt=True, return_dict=True
    )['input_ids']
  )
  assert all(type(token) is int for token in ids)
  assert chatml.decode(ids).endswith('<|im_end|>\n<|im_start|>assistant\n')


def test_no_token_is_added_that_the_template_does_not_write(chatml):
  # Many tokenizers put a BOS before every text; their template writes it too.
  # Kills: two of them in the prompt, or one in the middle, before a response.
  import tokenizers

  plain = prompts.encode_prompt(chatml, USER)
  chatml.backend_tokenizer.post_processor = (
    tokenizers.processors.TemplateProcessing(
      single='<|endoftext|> $A', special_tokens=[('<|endoftext|>', 0)]
    )
  )
  assert chatml.encode('3')[0] == 0
  assert prompts.encode_prompt(chatml, USER) == plain
  assert 0 not in prompts.encode_response(chatml, '3', stop_id=2)


def test_a_response_ends_with_the_stop_token_once(chatml):
  ids = prompts.encode_response(chatml, '3 4 #### 4', stop_id=2)
  # Kills: the template's newline after the turn as a last token to learn.
  assert chatml.decode(ids) == '3 4 #### 4<|im_end|>'
  with pytest.raises(
    ValueError, match=r'contains the stop token .<\|im_end\|>'
  ):
    prompts.encode_response(chatml, '3<|im_end|>', stop_id=2)


def test_the_turn_end_comes_from_the_template_not_from_eos(chatml):
  # Kills: eos_token_id, which base models set to another token.
  chatml.eos_token = '<|endoftext|>'
  assert prompts.turn_end(chatml) == 2
  assert prompts.turn_end(_with_template(chatml, NO_SYSTEM)) == 0
  assert prompts.turn_end(_with_template(chatml, THINKING)) == 2
  plain = "{% for m in messages %}{{ m.content + '\\n' }}{% endfor %}"
  with pytest.raises(ValueError, match=r'no special token .* end the turn'):
    prompts.turn_end(_with_template(chatml, plain))


def test_prompt_and_response_are_the_chat_as_the_template_renders_it(chatml):
  # Kills: a template or an encoding that puts a space or a newline between.
  words = ['3', ' 4', 'Then', ' the', '\n', ' ', '####', 'é', '.']
  noise = np.random.default_rng(0)
  for _ in range(100):
    text = 'a' + ''.join(noise.choice(words, size=noise.integers(8)))
    prompts.check_boundary(chatml, USER, text, stop_id=2)
  for example in sources.running_sum(count=20, modulus=100):
    prompts.check_boundary(
      chatml, example.messages, example.response, stop_id=2
    )


def test_a_template_that_adds_to_the_response_is_found(chatml):
  # Kills: comparing lengths only, or only the tokens of the response.
  thinking = _with_template(chatml, THINKING)
  with pytest.raises(ValueError, match=r"comes '3.*in the chat '<think>"):
    prompts.check_boundary(thinking, USER, '3', stop_id=2)
  prompts.check_boundary(
    thinking, USER, '3', stop_id=2, template_kwargs={'enable_thinking': False}
  )
  # The tokenizer joins what stands on both sides of the boundary.
  joined = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
  with pytest.raises(ValueError, match='encoded apart'):
    prompts.check_boundary(_with_template(chatml, joined), USER, '3', stop_id=2)


def test_template_kwargs_reach_the_template(chatml):
  thinking = _with_template(chatml, THINKING)
  plain, off = (
    chatml.decode(prompts.encode_prompt(thinking, USER, template_kwargs=kwargs))
    for kwargs in (None, {'enable_thinking': False})
  )
  assert off == plain + '<think>\n\n</think>\n\n'
  # Kills: a misspelt switch that Jinja ignores in silence.
  with pytest.raises(ValueError, match='no variable enable_thinkng'):
    prompts.encode_prompt(
      thinking, USER, template_kwargs={'enable_thinkng': False}
    )


def test_a_chat_that_cannot_be_rendered_is_refused(chatml):
  system = [{'role': 'system', 'content': 'Be brief.'}, *USER]
  with pytest.raises(ValueError, match='refuses these messages: System role'):
    prompts.encode_prompt(_with_template(chatml, NO_SYSTEM), system)
  with pytest.raises(ValueError, match='no chat template; load that of the'):
    prompts.encode_prompt(_with_template(chatml, None), USER)


@pytest.mark.parametrize('thinking', [None, True, False])
def test_a_thinking_template_gives_what_transformers_gives(chatml, thinking):
  # Kills: a switch that reaches one of prompt and turn end only, and thinking
  # that is switched off where nobody asked.
  tok = _with_template(chatml, QWEN3)
  options = {} if thinking is None else {'enable_thinking': thinking}
  chat = [{'role': 'system', 'content': 'Be brief.'}, *USER]
  ids = prompts.encode_prompt(tok, chat, template_kwargs=options)
  theirs = tok.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, **options
  )
  assert ids == theirs['input_ids']
  empty = tok.decode(ids).endswith('<think>\n\n</think>\n\n')
  assert empty == (thinking is False)
  assert prompts.turn_end(tok, template_kwargs=options) == 2


def test_thoughts_are_learnt_where_the_template_shows_them(chatml):
  # OpenThoughts' responses, in the mode that each belongs to. Kills: learning
  # to answer at once in a mode that thinks, without a word about it.
  tok = _with_template(chatml, QWEN3)
  thought = '<think>\nhm\n</think>\n\n3'
  on, off = ({'enable_thinking': value} for value in (True, False))
  prompts.check_boundary(tok, USER, thought, stop_id=2, template_kwargs=on)
  prompts.check_boundary(tok, USER, '3', stop_id=2, template_kwargs=off)
  for text, options in ((thought, off), ('3', on)):
    with pytest.raises(ValueError, match='encoded apart, are not the chat'):
      prompts.check_boundary(
        tok, USER, text, stop_id=2, template_kwargs=options
      )

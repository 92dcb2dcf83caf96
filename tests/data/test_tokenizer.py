"""Tokenizers trained here, against what users rely on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import transformers

from jopd.data import sources, tokenizer

CHAT = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': '3 1 4 1 5 9'},
  {'role': 'assistant', 'content': '3 4 8 9 4 3 #### 3'},
  {'role': 'user', 'content': 'Thanks\n'},
]


@pytest.fixture(scope='module')
def builtin():
  return tokenizer.builtin_tokenizer()


def test_every_text_comes_back_unchanged(builtin):
  # Kills: an alphabet without all bytes, clean-up of spaces, a prefix space.
  texts = [
    '',
    ' ',
    'a  b \n\n c\t',
    '½é\u2028漢字🙂',
    '\x00\x7f',
    " it 's . 3 .",
  ]
  noise = np.random.default_rng(0)
  for _ in range(200):
    codes = noise.integers(0, 0x2FFF, size=noise.integers(1, 30))
    texts.append(''.join(map(chr, codes)))
  for text in texts:
    ids = builtin.encode(text)
    assert builtin.decode(ids) == text
    assert all(0 <= token < len(builtin) for token in ids)


def test_a_number_is_read_digit_by_digit(builtin):
  # One token for each digit with its space: the sums and the tokens of the
  # builtin task line up. Kills: merged digits ('31'), a space on its own.
  assert builtin.tokenize('31 4 59 #### 60') == [
    '3', '1', 'Ġ4', 'Ġ5', '9', 'Ġ####', 'Ġ6', '0'
  ]  # fmt: skip
  singles = {builtin.encode(f' {digit}')[0] for digit in range(10)}
  assert len(singles) == 10
  for example in sources.running_sum(count=20):
    assert len(builtin.encode(example.response)) == 8


def test_the_vocabulary_is_384_with_the_special_tokens_first(builtin):
  # Configs name the size, and dividing it over devices needs the factor 128.
  assert len(builtin) == builtin.vocab_size == 384
  assert builtin.convert_ids_to_tokens([0, 1, 2]) == list(
    tokenizer.SPECIAL_TOKENS
  )
  assert (builtin.pad_token_id, builtin.eos_token_id) == (0, 2)


def test_nothing_is_added_to_a_text(builtin):
  # Kills: a BOS or EOS from a post-processor.
  assert builtin.bos_token is None
  assert builtin('user')['input_ids'] == builtin.encode(
    'user', add_special_tokens=False
  )
  assert len(builtin.encode('user')) == 1


def test_the_chat_template_is_chatml_to_the_byte(builtin):
  # Kills: newlines swallowed by Jinja's trim_blocks.
  text = builtin.apply_chat_template(
    CHAT, tokenize=False, add_generation_prompt=True
  )
  assert text == (
    '<|im_start|>system\nBe brief.<|im_end|>\n'
    '<|im_start|>user\n3 1 4 1 5 9<|im_end|>\n'
    '<|im_start|>assistant\n3 4 8 9 4 3 #### 3<|im_end|>\n'
    '<|im_start|>user\nThanks\n<|im_end|>\n'
    '<|im_start|>assistant\n'
  )


def test_the_template_marks_what_the_assistant_wrote(builtin):
  # Kills: a generation block that leaves out the stop token, or takes in the
  # role or the newline.
  chat = builtin.apply_chat_template(
    CHAT, return_dict=True, return_assistant_tokens_mask=True
  )
  marked = [
    token
    for token, on in zip(
      chat['input_ids'], chat['assistant_masks'], strict=True
    )
    if on
  ]
  assert builtin.decode(marked) == '3 4 8 9 4 3 #### 3<|im_end|>'


def test_a_saved_tokenizer_comes_back_the_same(builtin, tmp_path):
  # Kills: a template or special tokens that live only in this process.
  builtin.save_pretrained(tmp_path)
  again = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert again.chat_template == builtin.chat_template
  assert again.get_vocab() == builtin.get_vocab()
  for name in ('eos_token_id', 'pad_token_id', 'bos_token', 'padding_side'):
    assert getattr(again, name) == getattr(builtin, name)
  for text in ('3 1 4', ' Hello,  world. \n', '<|im_end|>é'):
    assert again.encode(text) == builtin.encode(text)
    assert again.decode(again.encode(text)) == text
  chats = [
    t.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)
    for t in (builtin, again)
  ]
  assert chats[0]['input_ids'] == chats[1]['input_ids']


def test_every_process_trains_the_same_tokenizer(builtin):
  # Ties between merges must not depend on threads or on the hash seed: a
  # model trained in one process is read in another.
  code = (
    'import json; from jopd.data import tokenizer; '
    'print(json.dumps(tokenizer.builtin_tokenizer().get_vocab()))'
  )
  env = os.environ | {'TOKENIZERS_PARALLELISM': 'true', 'PYTHONHASHSEED': '7'}
  out = subprocess.run(
    [sys.executable, '-c', code], env=env, capture_output=True, check=True
  )
  assert json.loads(out.stdout) == builtin.get_vocab()


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
  with pytest.raises(ValueError, match=r'at least 259 .* got 258'):
    tokenizer.train_tokenizer(['a'], vocab_size=258)
  assert len(tokenizer.train_tokenizer(['a'], vocab_size=259)) == 259

"""Whether models that are to share every token id also mean the same by them.

Read from their folders, before any weight is.
"""

from collections.abc import Mapping

from jopd.data.prompts import encode_prompt
from jopd.doctor.findings import Finding, judge
from jopd.models import hf

_CHATS = (
  [{'role': 'user', 'content': 'What is 2 + 3?'}],
  [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'What is 2 + 3?'},
  ],
)


def compare(
  folders: Mapping[str, str], *, template_kwargs: Mapping | None = None
) -> list[Finding]:
  """Compares the tokenizer files of all models with those of the first.

  Args:
    folders: name of a model -> its Hugging Face folder; one or more.
    template_kwargs: variables of the chat template.

  Returns:
    For each further model: tokenizer (how many ids mean another token),
    special tokens (how many are special to one of the two), stop tokens (share
    of all stops that they do not share) and chat template (how many of two
    chats it renders otherwise; one that refuses a chat does).

  Raises: FileNotFoundError, ValueError: a folder has no tokenizer, or a
    damaged one.
  """
  loaded = {name: hf.load_tokenizer(path) for name, path in folders.items()}
  (first, ours), *others = loaded.items()
  findings = []
  for model, theirs in others:
    names = dict(first=first, model=model)
    pair = f'{model} against {first}'
    ids = ours.get_vocab().items() ^ theirs.get_vocab().items()
    special = {*ours.all_special_tokens} ^ {*theirs.all_special_tokens}
    stops = [
      {*hf.stop_ids(folders[name], loaded[name])} for name in (first, model)
    ]
    apart = len(stops[0] ^ stops[1]) / len(stops[0] | stops[1])
    said = ', '.join(str(sorted(s)) for s in reversed(stops))
    differing, how = _renderings(ours, theirs, template_kwargs)
    findings += [
      judge('tokenizer', len(ids), f'token-id pairs, {pair}', **names),
      judge('special tokens', len(special), f'in one only, {pair}', **names),
      judge('stop tokens', apart, f'not shared, {pair}: {said}', **names),
      judge('chat template', differing, f'{how}, {pair}', **names),
    ]
  return findings


def _renderings(ours, theirs, template_kwargs) -> tuple[int, str]:
  """How many chats two tokenizers render differently, and what about it."""
  differing, how = 0, f'of {len(_CHATS)} chats rendered otherwise'
  for chat in _CHATS:
    texts = []
    for tokenizer in (ours, theirs):
      try:
        ids = encode_prompt(tokenizer, chat, template_kwargs=template_kwargs)
        texts.append(tokenizer.decode(ids))
      except ValueError as error:
        texts.append(f'refused: {error}')
    if texts[0] != texts[1]:
      differing += 1
      if ('think' in texts[0]) != ('think' in texts[1]):
        how = f'of {len(_CHATS)} chats, in the thinking mode too'
  return differing, how

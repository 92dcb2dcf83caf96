"""What a teacher reads who is told of the responses: another thing for each."""

from collections.abc import Callable, Mapping, Sequence
import inspect
import typing

import numpy as np

from jopd.data import prompts
from jopd.data.batching import PromptBatch, pad
from jopd.data.examples import ScoredResponse

if typing.TYPE_CHECKING:  # imported late: it takes seconds
  import transformers


def reads_rollouts(context: Callable) -> bool:
  """Whether a context is told of the responses."""
  return 'own' in inspect.signature(context).parameters


def encode_rollout_contexts(
  prompts_read: PromptBatch,
  attempts: Sequence[Sequence[ScoredResponse]],
  context: Callable[..., list[dict] | None],
  *,
  tokenizer: 'transformers.PreTrainedTokenizerBase',
  max_teacher_prompt_tokens: int,
  template_kwargs: Mapping[str, object] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What a teacher reads of each response who is told of the responses.

  Where the context has nothing to tell, or more than there is room for, it is
  the student's prompt.

  Args:
    prompts_read: b prompts, as the student reads them.
    attempts: the G responses to each.
    context: (example, own, others) -> messages, of `data/contexts.py`.
    tokenizer, template_kwargs: as in `encode_batch`.
    max_teacher_prompt_tokens: P, the places of such a prompt.

  Returns:
    ids [b * G, P], lengths [b * G], and [b * G] bool: whether it was told.
  """
  rows, told = [], []
  for i, (example, group) in enumerate(
    zip(prompts_read.examples, attempts, strict=True)
  ):
    plain = prompts_read.prompt[i, : prompts_read.prompt_length[i]]
    for j, own in enumerate(group):
      messages = context(example, own, [*group[:j], *group[j + 1 :]])
      ids = messages and prompts.encode_prompt(
        tokenizer, messages, template_kwargs=template_kwargs
      )
      told.append(bool(ids) and len(ids) <= max_teacher_prompt_tokens)
      rows.append(np.asarray(ids if told[-1] else plain, np.int32))
  return *pad(rows, max_teacher_prompt_tokens), np.array(told)

"""What the phases hand to each other."""

import numpy as np

from jopd.train.phases import Answers, Phases


# Kills: shapes that follow every length (a compilation each), tokens cut off.
def test_batches_are_cut_to_buckets(make_tiny):
  built = make_tiny(
    **{
      'buckets': 3,
      'stages': ('distil',),
      'distil.group_size': 1,
      'distil.batch_size': 8,
      'distil.micro_batches': 1,
      'distil.contexts': {
        'teacher': {'name': 'with_system', 'prompt': 'Be brief.'}
      },
      'distil.max_context_tokens': 48,
    }
  )
  [stage] = built.stages
  phases = Phases(stage, built.run, {}, None)
  prompts = next(stage.batches)
  rows, steps = len(prompts.prompt), built.run.max_response_tokens
  response = np.arange(rows * steps).reshape(rows, steps)
  logp = np.zeros((rows, steps), np.float32)
  end, slot_steps = np.ones(rows, np.int32), np.int32(0)

  def place(longest):
    length = np.full(rows, 1)
    length[-1] = longest
    answers = Answers(response, length, logp, logp, end, slot_steps)
    return phases.place(prompts, answers)

  for longest, columns in ((1, 4), (4, 4), (5, 8), (16, 16)):
    batch = place(longest)
    assert batch.sampler_logp.shape == batch.response.shape == (rows, columns)
    np.testing.assert_array_equal(batch.response, response[:, :columns])
  slots = prompts.prompt.shape[1]
  for prompt, length, most in (
    (*batch.teacher_prompts['teacher'], 48),
    (batch.prompt, batch.prompt_length, slots),
  ):
    longest = int(np.max(length))
    assert longest <= prompt.shape[1] < 2 * longest
    assert prompt.shape[1] in (most, -(-most // 2), -(-most // 4))

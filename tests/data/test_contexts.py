"""Contexts: what a model reads before the response."""

from jopd.data import contexts
from jopd.data.examples import Example


def _example(*roles):
  return Example('a', [{'role': role, 'content': role} for role in roles])


def test_the_shared_rule_is_the_only_system_turn():
  # Kills: a second system turn, which most chat templates refuse.
  for roles in (['user'], ['system', 'user', 'assistant', 'user']):
    turns = contexts.with_system(_example(*roles), prompt='rule')
    assert turns[0] == {'role': 'system', 'content': 'rule'}
    assert [t['role'] for t in turns[1:]] == [r for r in roles if r != 'system']


def test_contexts_leave_their_example_as_it_was():
  # Kills: inserting into the example's own list, so that the student reads
  # what only the teacher may.
  example = _example('user')
  contexts.same(example).append({'role': 'user', 'content': 'more'})
  contexts.with_system(example, prompt='rule').append({})
  assert example == _example('user')

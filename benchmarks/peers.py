"""Other samplers as functions of no arguments, to be timed beside ours.

Each takes a Hugging Face folder, prompts [B, P] padded on the right, their
lengths [B] and the number of tokens that every row shall get, and samples in
float32 at temperature 1 without filters. The answer is a dictionary, empty
where the sampler is not installed, of functions by name; ':' begins a variant.
"""

import functools
import time

import numpy as np

from jopd.models import hf


def transformers_generate(folder, prompt, length, new):
  """`generate` of transformers on PyTorch, on the CPU, by number of threads."""
  try:
    import torch
    import transformers
  except ImportError:
    return {}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()
  # transformers wants the padding on the left.
  slot, slots = np.arange(prompt.shape[1])[None], prompt.shape[1]
  real = slot >= slots - length[:, None]
  left = np.zeros_like(prompt)
  left[real] = prompt[slot < length[:, None]]
  left, real = torch.from_numpy(left).long(), torch.from_numpy(real).long()

  def generate(threads, new=new):
    torch.set_num_threads(threads)
    config = transformers.GenerationConfig(
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      max_new_tokens=new,
      pad_token_id=0,
    )
    out = model.generate(left, attention_mask=real, generation_config=config)
    assert out.shape == (len(prompt), slots + new)

  # Beside another busy process PyTorch's threads wait for each other, up to
  # forty times as long as one alone takes: such a variant is left out.
  seconds = {}
  for threads in {1, torch.get_num_threads()}:
    generate(threads, 2)
    start = time.perf_counter()
    generate(threads, 8)
    seconds[threads] = time.perf_counter() - start
  return {
    f'transformers:threads={threads}': functools.partial(generate, threads)
    for threads, taken in seconds.items()
    if taken < 2 * min(seconds.values())
  }


def tunix_sampler(folder, prompt, length, new):
  """Tunix's sampler, its cache as short as can be."""
  try:
    from tunix.generate import sampler
    from tunix.models.qwen3 import model, params
  except ImportError:
    return {}
  config = hf.read_config(folder)
  sizes = dict(
    num_layers=config.layers,
    num_kv_heads=config.kv_heads,
    head_dim=config.head_dim,
  )
  network = params.create_model_from_safe_tensors(
    folder,
    model.ModelConfig(
      **sizes,
      vocab_size=config.vocab_size,
      embed_dim=config.embed,
      hidden_dim=config.mlp,
      num_heads=config.heads,
      rope_theta=int(config.rope_theta),
      norm_eps=config.norm_eps,
      use_tied_embedding=config.tied,
    ),
  )
  prompts = [row[:n].tolist() for row, n in zip(prompt, length, strict=True)]
  cache = sampler.CacheConfig(cache_size=prompt.shape[1] + new, **sizes)
  sample = sampler.Sampler(network, _Numbered(prompts), cache)

  def generate():
    out = sample(
      [str(i) for i in range(len(prompts))],
      max_generation_steps=new,
      max_prompt_length=prompt.shape[1],
      eos_tokens=[config.vocab_size + 7],  # never
      temperature=1.0,
      top_p=1.0,
      seed=0,
    )
    assert all(len(tokens) == new for tokens in out.tokens)

  return {'tunix': generate}


class _Numbered:
  """The tokenizer that Tunix asks for: the text '3' is the fourth prompt."""

  def __init__(self, prompts):
    self._prompts = prompts

  def encode(self, text, **_):
    return self._prompts[int(text)]

  def decode(self, ids, **_):
    return ''

  bos_id = pad_id = lambda self: 0
  eos_id = lambda self: 1

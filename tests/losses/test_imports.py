"""The losses can be taken into other code without the rest of the house."""

import subprocess
import sys


# Kills an import that drags a framework into a foreign program.
def test_the_losses_import_jax_and_little_else():
  code = (
    'import sys, jopd.losses;'
    'heavy = {"flax", "transformers", "orbax", "optax", "grain", "torch",'
    ' "tensorflow_datasets", "matplotlib", "ml_collections"};'
    'print(sorted(heavy & set(sys.modules)),'
    ' sorted(m for m in sys.modules if m.startswith("jopd.")'
    ' and not m.startswith("jopd.losses")))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '[] []'

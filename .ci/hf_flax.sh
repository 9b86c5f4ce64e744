#!/usr/bin/env bash
# hf_flax.sh FOLDER: an environment with the last transformers that has Flax classes, and in it the
# checks of examples/hf_flax_gpt_neo.py. They need an environment of their own: the tests run with
# transformers 5, which dropped those classes. JAX and Flax are the oldest that this package takes.
# Afterwards JAXPEFT_HF_FLAX_PYTHON=FOLDER/bin/python lets tests/test_examples.py run them too.
set -euo pipefail

folder=$(realpath -m "${1:?a folder for the environment}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1

python3 -m venv "$folder"
"$folder/bin/pip" install --quiet transformers==4.57.6 jax==0.10.2 flax==0.12.8 optax==0.2.8
"$folder/bin/pip" install --quiet --no-deps --editable .
"$folder/bin/python" examples/hf_flax_gpt_neo.py --check

"""The folder of compiled programs that all runs on this machine share."""

import os
import pathlib

import jax

MIN_SECONDS = 0.05  # of compiling; finding a program on disk takes up to 0.01


def enable() -> str:
    """Turns on JAX's persistent compilation cache: a second start compiles nothing.

    The folder is JAX_COMPILATION_CACHE_DIR, or JAXPEFT_CACHE/xla, or ~/.cache/jaxpeft/xla.

    Returns:
      The folder.
    """
    home = pathlib.Path(os.environ.get('JAXPEFT_CACHE', '~/.cache/jaxpeft')).expanduser()
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(home / 'xla')
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)
    return folder

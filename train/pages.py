"""Memory pages of 2 MiB for the programs on Linux: a CPU's step is a tenth faster.

On CPU, XLA takes a step's temporaries from malloc and gives them back after it (GPT-Neo-125M's, 4
rows of 256 tokens: 0.8 to 1.3 GB), so that the kernel hands out 200,000 to 320,000 pages of 4 KiB
anew for every step. glibc asks for larger ones where `GLIBC_TUNABLES` says so when a process
starts (glibc 2.35, `glibc.malloc.hugetlb`), and there is no other way to switch it on.
"""

import os
import pathlib
import re
import sys
from collections.abc import Mapping

VARIABLE = 'GLIBC_TUNABLES'
TUNABLE = 'glibc.malloc.hugetlb'
SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
GLIBC = (2, 35)  # the first that knows the tunable


def ask() -> None:
    """Starts a program of `python -m train.*` or `eval.*` anew, with huge pages.

    For `__init__` of these packages, which runs before the program and what it imports: it is the
    same process with the same arguments, 20 ms later. Nothing happens in other programs, under a
    debugger, where the kernel does not wait to be asked (it gives huge pages always or never), with
    another C library, or where the variable names the tunable:
    `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` keeps the small ones.
    """
    # Python's own sign, while it looks for the module of -m; see its documentation of the option.
    starting = sys.argv[:1] == ['-m'] and sys.gettrace() is None
    if starting and sys.executable and asked_for(os.environ) is None and _grants():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted(os.environ, '1'))


def asked_for(environment: Mapping[str, str]) -> str | None:
    """What a process with these variables asks for: '1' huge pages, '0' none, None: unsaid.

    Example:
      >>> asked_for({'GLIBC_TUNABLES': 'glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1'})
      '1'
    """
    found = re.search(rf'(?:^|:){re.escape(TUNABLE)}=(\d+)', environment.get(VARIABLE, ''))
    return None if found is None else found[1]


def wanted(environment: Mapping[str, str], value: str) -> dict[str, str]:
    """The variables with the tunable set; other tunables stay.

    Example:
      >>> wanted({'GLIBC_TUNABLES': 'glibc.malloc.arena_max=2'}, '1')
      {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1'}
    """
    others = environment.get(VARIABLE, '').split(':')
    kept = [one for one in others if one and not one.startswith(f'{TUNABLE}=')]
    return {**environment, VARIABLE: ':'.join([*kept, f'{TUNABLE}={value}'])}


def _grants() -> bool:
    """Whether the kernel gives huge pages to those who ask, and the C library can ask."""
    if sys.platform != 'linux' or not SETTING.exists() or '[madvise]' not in SETTING.read_text():
        return False
    names = os.confstr_names
    library = os.confstr('CS_GNU_LIBC_VERSION') if 'CS_GNU_LIBC_VERSION' in names else None
    version = re.match(r'glibc (\d+)\.(\d+)', library or '')
    return version is not None and (int(version[1]), int(version[2])) >= GLIBC

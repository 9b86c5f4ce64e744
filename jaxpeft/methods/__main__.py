"""Prints the methods: name, first line of the docstring, options."""

from jaxpeft import methods

for name in methods.names():
    factory = methods.get(name)
    print(f'{name}: {(factory.__doc__ or "").strip().splitlines()[0]}')
    for option, default in methods.options(name).items():
        print(f'    {option} = {default!r}')

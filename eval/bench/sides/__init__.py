"""The sides that are measured: each module has `prepare(context, spec) -> call`.

Heavy libraries are imported by `prepare`, so that the rows can be listed without them.
"""

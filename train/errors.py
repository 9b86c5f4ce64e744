"""Which errors are messages to the user, and which are defects to be shown whole."""

MESSAGES = (ValueError, FileNotFoundError, ConnectionError, FloatingPointError)
PACKAGES = ('jaxpeft', 'train', 'eval')


def is_message(error: BaseException) -> bool:
    """Whether this project raised the error itself, to tell the user something.

    The same types raised inside a library mean that we called it wrongly.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, MESSAGES):
        return False
    return trace.tb_frame.f_globals.get('__name__', '').split('.')[0] in PACKAGES

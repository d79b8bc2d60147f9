"""The one exception whose message is meant for the user, not for a traceback."""


class InputError(ValueError):
    """Something the user handed over is wrong: a file, a key or a value.

    The message is a single line that names it and says what to do. Command line entry points print it and exit with
    code 2; nothing else is caught there, so a defect of ours still shows its traceback.
    """

"""Errors that are the user's to mend: one line, the value, the rule, the way out.

Every verb lets these travel to `zaplock.cli.main`, which prints the line and exits with 2.
A traceback means a fault of zaplock, never of its user.
"""


class UserError(Exception):
    """Report bad input or a missing permission; `str(error)` is the one line to print.

    exit_code: of a verb that ends with it.
    """

    exit_code = 2


class ProtocolError(UserError):
    """Report a protocol or step that does what none may, so that no verdict on it means anything.

    It hides state from the checker, asks a clock, forgets an `await`, or the like.
    """

    exit_code = 4

"""Where zaplock begins: the script `zaplock`, and `python -m zaplock` without a script directory.

`-m` puts the working directory first on the path, and modules of another user's directory would be
ours from then on; so it is taken off again, before anything else is imported. (Python itself has
looked there for `zaplock` by then: in a directory that isn't yours call the `zaplock` script, or
`python -P -m zaplock`.)
"""

import sys

if (
    __name__ == "__main__"
    and not sys.flags.safe_path
    and sys.path[:1] in ([""], [__import__("os").getcwd()])
):
    del sys.path[0]

# What `signal` is made of, without its enums, whose import takes longer than all of this.
import _signal  # type: ignore[import-not-found]


def main() -> int:
    """Run the command line; Ctrl-C before its verb has begun ends it without a traceback.

    There is nothing to clean up by then, so that signal may do what it does to any program.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from zaplock.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())

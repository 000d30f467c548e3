"""Where zaplock begins: the script `zaplock`, and `python -m zaplock` without a script directory.

`-m` puts the working directory first on the path, and modules of another user's directory would be
ours from then on; so it is taken off again, before anything else is imported. (Python itself has
looked there for `zaplock` by then: in a directory that isn't yours call the `zaplock` script, or
`python -P -m zaplock`.)
"""

import sys

if __name__ == "__main__":
    here = ([""], [__import__("os").getcwd()])
    if not sys.flags.safe_path and sys.path[:1] in here:
        del sys.path[0]

import signal


def main() -> int:
    """Run one verb and return its exit code.

    Ctrl-C while the parts of zaplock are still being imported ends it at once and in silence, as it
    ends any program; from then on `zaplock.cli` says so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from zaplock.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())

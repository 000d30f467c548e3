"""`python -m zaplock`, for where no script directory is on the path.

`-m` puts the working directory first on the path, and modules of another user's directory would be
ours from then on; so it is taken off again, before anything else is imported. (Python itself has
looked there for `zaplock` by then: in a directory that isn't yours call the `zaplock` script, or
`python -P -m zaplock`.)
"""

import sys

if not sys.flags.safe_path and sys.path[:1] in ([""], [__import__("os").getcwd()]):
    del sys.path[0]

from zaplock.cli import main

sys.exit(main())

"""`python -m zaplock`, for where no script directory is on the path."""

import sys

from zaplock.cli import main

sys.exit(main())

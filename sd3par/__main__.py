"""`python -m sd3par` is the `sd3par` command."""

import sys

from sd3par.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())

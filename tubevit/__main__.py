"""`python -m tubevit`."""

import sys

from tubevit.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m incop` is `incop`."""

import sys

from incop.cli import main

sys.exit(main())

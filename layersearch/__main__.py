"""``python -m layersearch``."""

import sys

from layersearch.cli.main import main

sys.exit(main())

"""python -m prosparse"""

import sys

from .cli import main

sys.exit(main())

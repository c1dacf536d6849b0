"""python -m zs2_lib: the command line, see cli.py."""

import sys

from zs2_lib.cli import main

sys.exit(main())

"""`python -m launcher`, and what accelerate and torchrun start."""

import sys

from launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())

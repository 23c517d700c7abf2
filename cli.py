"""The command line: fit, validate, test and predict are Lightning's."""

import sys

from lightning_recon.main import main

if __name__ == "__main__":
    sys.exit(main())

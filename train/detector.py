"""``python -m train.detector``: the old name of ``python -m train detector``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["detector", *sys.argv[1:]])

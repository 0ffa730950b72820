"""``python -m train.prior``: the old name of ``python -m train prior``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["prior", *sys.argv[1:]])

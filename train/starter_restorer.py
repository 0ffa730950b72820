"""``python -m train.starter_restorer``: the old name of ``python -m train restorer``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["restorer", *sys.argv[1:]])

"""``python -m train.evaluate``: the old name of ``python -m train evaluate``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])

"""``python -m train.degrade``: the old name of ``python -m train preview``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["preview", *sys.argv[1:]])

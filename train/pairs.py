"""``python -m train.pairs``: the old name of ``python -m train pairs``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["pairs", *sys.argv[1:]])

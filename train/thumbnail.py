"""``python -m train.thumbnail``: the old name of ``python -m train thumbnail``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["thumbnail", *sys.argv[1:]])

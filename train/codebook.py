"""``python -m train.codebook``: the old name of ``python -m train codebook``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["codebook", *sys.argv[1:]])

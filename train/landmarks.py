"""``python -m train.landmarks``: the old name of ``python -m train landmarks``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["landmarks", *sys.argv[1:]])

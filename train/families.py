"""``python -m train.families``: the old name of ``python -m train families``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["families", *sys.argv[1:]])

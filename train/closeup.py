"""``python -m train.closeup``: the old name of ``python -m train closeup``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["closeup", *sys.argv[1:]])

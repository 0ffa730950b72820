"""``python -m train.export``: the old name of ``python -m train export``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])

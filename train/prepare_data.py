"""``python -m train.prepare_data``: the old name of ``python -m train prepare``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])

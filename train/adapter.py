"""``python -m train.adapter``: the old name of ``python -m train adapter``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["adapter", *sys.argv[1:]])

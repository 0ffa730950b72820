"""``python -m train.embedder``: the old name of ``python -m train embedder``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["embedder", *sys.argv[1:]])

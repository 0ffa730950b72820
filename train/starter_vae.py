"""``python -m train.starter_vae``: the old name of ``python -m train vae``, kept for one version."""

import sys

from train.__main__ import main

if __name__ == "__main__":
    main(["vae", *sys.argv[1:]])

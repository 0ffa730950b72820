"""One module a command: ``add`` describes it to argparse, ``run`` carries it out."""

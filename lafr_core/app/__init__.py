"""The command line: what it works on, how it runs, what it reports."""

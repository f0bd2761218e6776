"""The command line: one command per file, assembled in `app`, all printing through `output`."""

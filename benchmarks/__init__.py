"""Speed compared with peers: see README.md here. Run from a clone; not part of the wheel."""

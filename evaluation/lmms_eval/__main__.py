"""Prints the folder of the task files, for lmms-eval's `--include_path`."""

from . import TASKS


if __name__ == "__main__":
    print(TASKS)

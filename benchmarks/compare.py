"""The paired difference of two trained runs on the same tasks, with its 95 % interval.

    python benchmarks/compare.py runs/a runs/b

From Python: metatrain.Run("runs/a").compare("runs/b").
"""

from __future__ import annotations

import sys

from cluster.comparison import compare
from metatrain.core import InputError


def main(first: str, second: str) -> None:
    """Print both means and the mean difference, second - first."""
    print(*compare(first, second).lines(), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

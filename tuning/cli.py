"""The `metatrain` command: the commands of all layers."""

from __future__ import annotations

from cluster.cli import app
from metatrain import cli


def main() -> None:
    """Entry point of the console script."""
    cli.main(app)


if __name__ == "__main__":
    main()

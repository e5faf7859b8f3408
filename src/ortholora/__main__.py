"""`ortholora` and `python -m ortholora`."""

from __future__ import annotations

import sys


def main() -> None:
    """Start the command line, or say how to install it."""
    try:
        from ortholora.cli.app import app
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("ortholora"):
            raise
        sys.exit(
            f"The ortholora command needs the package {error.name!r}.\n"
            "  expected: the extra [cli]\n"
            "  found:    an installation without it\n"
            '  to do:    pip install "ortholora[cli]"'
        )
    app()


if __name__ == "__main__":
    main()

"""`ortholora` and `python -m ortholora`."""

from __future__ import annotations

from ortholora.cli.start import main

if __name__ == "__main__":
    main()

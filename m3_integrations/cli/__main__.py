"""`python -m m3_integrations.cli` runs the `m3` command."""

from m3_integrations.cli import main

if __name__ == "__main__":
    main()

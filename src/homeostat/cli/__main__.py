"""`python -m homeostat.cli`, the same as `homeostat`."""

from homeostat.cli import main

if __name__ == "__main__":
    main()

"""`python -m anymix` is `anymix`."""

from anymix.cli import main

if __name__ == "__main__":
    main()

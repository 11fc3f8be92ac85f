"""`python -m edgemamba`: the same as the `edgemamba` command."""

from edgemamba.runtime.cli import main

if __name__ == "__main__":
    main()

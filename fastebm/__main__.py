"""`python -m fastebm`."""

from fastebm.cli import main

if __name__ == "__main__":
    main()

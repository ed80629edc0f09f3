"""`python -m fastebm`."""

from fastebm.app.cli import main

if __name__ == "__main__":
    main()

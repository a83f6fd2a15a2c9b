"""`python -m fedpeft.cli`."""

from fedpeft.cli import app

if __name__ == "__main__":
    app()

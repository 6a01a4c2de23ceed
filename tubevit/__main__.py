"""`python -m tubevit`."""

from tubevit.cli.main import entry

if __name__ == "__main__":
    entry()

"""`python -m tcpgate`: the command line."""

from tcpgate.cli import main

if __name__ == "__main__":
    main()

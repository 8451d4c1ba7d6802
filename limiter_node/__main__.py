"""`python -m limiter_node` is the same as the console script `limiter-node`."""

from limiter_node.cli import main

if __name__ == "__main__":
    main()

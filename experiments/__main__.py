"""Entry point of ``python -m experiments``: check the extra packages, then run the command line."""

import sys
from importlib.util import find_spec

_PACKAGES = (
    "dacite",
    "markdown_it",
    "matplotlib",
    "mlxtend",
    "pandas",
    "pooch",
    "yaml",
    "rich",
    "sklearn",
    "torchmetrics",
    "tyro",
)


def missing_packages() -> list[str]:
    """Name the packages of the ``experiments`` extra that are not installed.

    Returns:
        Import names, in alphabetical order.
    """
    return [name for name in _PACKAGES if find_spec(name) is None]


def main() -> int:
    """Run the command line, or say which packages it needs.

    Returns:
        The exit code: 0 done, 1 a law missed, 2 a mistake in the request, 130 interrupted.
    """
    if missing := missing_packages():
        print(
            f"error: the experiments need {', '.join(missing)}; install them with: "
            'pip install "filteropt[experiments]"',
            file=sys.stderr,
        )
        return 2
    from experiments.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

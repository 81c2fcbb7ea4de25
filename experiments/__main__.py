"""The studies behind the course: `python -m experiments` lists them, `python -m experiments NAME` runs what one lacks.

Runs are shared out among processes of one thread each (--processes, default 2); each run's rows are on file when it
ends, so that an interrupted command goes on when it is given again. `python -m experiments weights mpnet` fetches the
weights of the second encoder, which one of the studies needs.
"""

import argparse
import sys

from .runner import complete, studies
from .weights import fetch


def main(arguments: list[str] | None = None) -> int:
    """List the studies, or run some; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="studies to complete (default: only list all)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    options = parser.parse_args(arguments)
    if options.names == ["weights", "mpnet"]:
        print(fetch())
        return 0
    known = studies()
    if unknown := set(options.names) - set(known):
        parser.error(f"no study {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")
    for name in options.names:
        complete(known[name], options.processes)
    for name, study in known.items():
        missing = len(study.missing())
        left = study.minutes * missing / len(study.runs) / 60
        state = f"{missing} of {len(study.runs)} runs missing, {left:.1f} hours of one core"
        if not missing:
            state = f"complete, took {study.hours():.1f} hours of one core"
        print(f"{name}: {study.question}\n    {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

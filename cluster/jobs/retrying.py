"""The process of a job with `--retries`: it starts the driver, and again whenever the driver dies.

    Ray's supervisor --> this process --> driver: `metatrain train` or `metatrain tune`
                                    --> the same with --resume auto, at most N times

Ray starts a job's command once, and has no retry for it. This process imports nothing large, so
that a machine without memory ends the driver and not this one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from cluster.jobs.job import stamp

DRIVER = ("-m", "tuning.cli")
FINAL = (0, 2, 130)  # done, refused in a sentence, stopped: another start would end so, too


def main(arguments: Sequence[str]) -> int:
    """Run `metatrain` with all arguments but the first, which is how often it may start again."""
    retries, *command = arguments
    return supervise([sys.executable, *DRIVER, *command], int(retries))


def supervise(command: Sequence[str], retries: int) -> int:
    """Run a command, and again with --resume auto if it dies; return its last exit code.

    SIGTERM ends it for good: Ray, which stops a job by it, sends it to the command, too.
    """
    stopped = False

    def run(command: Sequence[str]) -> int:
        with subprocess.Popen(command) as driver:
            if stopped:  # before there was a driver that could be told
                driver.terminate()
            return driver.wait()

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code, made = run(command), 0
        while starts_again(code, retries - made, stopped=stopped):
            made += 1
            print(f"{stamp()}{how_it_ended(code)}: start {made + 1} of {retries + 1}", flush=True)
            code = run(resuming(command))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if made and code not in FINAL:
        print(f"error: {how_it_ended(code)} at start {made + 1} of {retries + 1}", flush=True)
    return code if code >= 0 else 128 - code  # as a shell says it


def starts_again(code: int, left: int, *, stopped: bool) -> bool:
    """Decide whether a driver that ended is started again.

    code: its exit code; of a signal the negative number.
    left: how often it may still start.
    """
    return code not in FINAL and left > 0 and not stopped


def resuming(command: Sequence[str]) -> list[str]:
    """Return the command that continues what a command began."""
    kept = list(command)
    if "--resume" in kept:
        at = kept.index("--resume")
        del kept[at : at + 2]
    return [*kept, "--resume", "auto"]


def how_it_ended(code: int) -> str:
    """Return how a driver ended, as a sentence."""
    if code >= 0:
        return f"the driver ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    return f"the driver was ended by {name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Thousands of seeded mutations of what users give: each is taken, or refused in one sentence.

`python tests/fuzz.py --all` tries all kinds; `python tests/fuzz.py recipes --seed 17` one case.
What is wrong is a traceback, more than 10 s of the processor or 2 GB, a signal, or a secret that is
shown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz_files
import fuzz_recipes
import torch
from fuzz_recipes import SECRET

from metatrain.errors import Sentence

MOST_S = 10  # of the processor
WAIT_S = 60  # of the clock: other processes may have the processor
MOST_BYTES = 2 * 2**30
BATCH = 50  # cases of a process
Case = Callable[[random.Random], object]


class TooLong(BaseException):
    """A case takes more than WAIT_S."""


KINDS: dict[str, Case] = {**fuzz_recipes.KINDS, **fuzz_files.KINDS}
# Cases of each kind among 100: few of those that take a second.
SHARES = {
    "recipes": 8,
    "sweeps": 15,
    "trainings": 1,
    "lines": 1,
    "bundles": 5,
    "checkpoints": 5,
    "data sets": 5,
    "images": 10,
    "archives": 20,
    "journals": 20,
    "rows": 10,
}


def wrong(kind: str, seed: int) -> str | None:
    """Try one case in an own folder; say what is wrong with how it ended."""
    chance = random.Random(f"{kind} {seed}")
    home, start = Path.cwd(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            KINDS[kind](chance)
        except Sentence as error:
            if not str(error).isprintable() or len(str(error)) > 4000:
                return f"a sentence of {len(str(error))} characters: {str(error)[:200]!r}"
            if SECRET in str(error):
                return f"a secret is shown: {str(error)[:300]}"
        except TooLong:
            return f"more than {WAIT_S} s\n{traceback.format_exc()[-1500:]}"
        except BaseException:
            return traceback.format_exc()[-1500:]
        finally:
            os.chdir(home)
    took = time.process_time() - start
    return f"{took:.0f} s" if took > MOST_S else None


def trial(kind: str, seeds: range) -> Iterator[tuple[int, str]]:
    """Try cases in a process of their own, and another after one that it does not survive."""
    seeds = range(seeds.start, seeds.stop)
    while seeds:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _in_child(kind, seeds, writing)
        os.close(writing)
        with os.fdopen(reading) as lines_:
            last = seeds.start - 1
            for line in lines_:
                last, found = json.loads(line)
                if found is not None:
                    yield last, found
        _, status = os.waitpid(child, 0)
        if last == seeds.stop - 1 and status == 0:
            return
        yield last + 1, f"the process ended with status {status}"
        seeds = range(last + 2, seeds.stop)


def _in_child(kind: str, seeds: range, writing: int) -> None:
    def late(number: int, frame: object) -> None:
        raise TooLong

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    signal.signal(signal.SIGALRM, late)
    code = 1
    try:
        with os.fdopen(writing, "w") as said:
            for seed in seeds:
                signal.alarm(WAIT_S)
                found = wrong(kind, seed)
                signal.alarm(0)
                print(json.dumps([seed, found]), file=said, flush=True)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []])
    parser.add_argument("--all", action="store_true", help="Try every kind.")
    parser.add_argument("--cases", type=int, default=20_000, help="Cases of all kinds together.")
    parser.add_argument("--first", type=int, default=0, help="Seed of a kind's first case.")
    parser.add_argument("--seed", type=int, help="Try one case here, with its traceback.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.seed is not None:
        print(wrong(given.kinds[0], given.seed) or "right")
        return
    bad = 0
    kinds = list(KINDS) if given.all else given.kinds
    for kind in kinds:
        share = SHARES[kind] / sum(SHARES[each] for each in kinds)
        seeds, start = (
            range(given.first, given.first + round(share * given.cases)),
            time.monotonic(),
        )
        for first in seeds[::BATCH]:
            for seed, found in trial(kind, range(first, min(first + BATCH, seeds.stop))):
                bad += 1
                print(f"--- {kind} {seed}: {found}", flush=True)
        took = time.monotonic() - start
        print(f"{kind}: seeds {seeds.start} to {seeds.stop - 1} in {took:.0f} s", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

"""The environment of a Ray job's process, and the time of day before the lines of its log."""

from __future__ import annotations

import os
import time

JOB = "METATRAIN_JOB"  # the job's name
JOB_CPUS, JOB_GPUS = "METATRAIN_JOB_CPUS", "METATRAIN_JOB_GPUS"  # what its driver holds
COMMIT, USER = "METATRAIN_COMMIT", "METATRAIN_USER"  # of the checkout that was sent, and its sender
SAVED = "the last whole step is saved"  # after an error, in a log; such a job can go on


def stamp() -> str:
    """Return the time of day in a job, whose log is read later; elsewhere an empty string."""
    return time.strftime("%H:%M:%S ") if JOB in os.environ else ""

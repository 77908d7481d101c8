"""The process of a Ray job: its environment variables, and the time of day before what it says."""

from __future__ import annotations

import os
import time

JOB, JOB_CPUS, JOB_GPUS = (
    "METATRAIN_JOB",
    "METATRAIN_JOB_CPUS",
    "METATRAIN_JOB_GPUS",
)  # its name; what its driver holds
COMMIT, USER = (
    "METATRAIN_COMMIT",
    "METATRAIN_USER",
)  # of the checkout that was sent, and who sent it


def stamp() -> str:
    """The time of day in a job, whose log is read later; else nothing."""
    return time.strftime("%H:%M:%S ") if JOB in os.environ else ""

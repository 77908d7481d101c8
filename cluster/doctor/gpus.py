"""The GPUs of a machine, as NVIDIA's driver and torch see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

DRIVER = Path("/proc/driver/nvidia/version")
ANSWER_S = 60.0
# In a process of its own: Ray hides GPUs from a task that reserves none.
LOOK = """
import json, torch
try:
    torch.cuda.init()
    seen, why = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())], ""
except Exception as error:
    seen, why = [], str(error).partition("\\n")[0]
print(json.dumps([seen, why]))
"""


class Gpus(NamedTuple):
    """What a machine has."""

    driver: str = ""  # its version; empty without one
    models: tuple[str, ...] = ()  # of each GPU that torch sees
    not_seen: str = ""  # why torch sees none, if there is a driver


def look() -> Gpus:
    """Look at this machine's GPUs, those in use as well."""
    if not DRIVER.exists():
        return Gpus()
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER.read_text())
    driver = found.group() if found else "unknown"
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOOK],
            env=environment,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=True,
        )
        models, why = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Gpus(driver, (), f"no answer in {ANSWER_S:g} s")
    except (subprocess.CalledProcessError, ValueError, LookupError) as error:
        return Gpus(driver, (), f"torch does not start ({type(error).__name__})")
    return Gpus(driver, tuple(models), why)

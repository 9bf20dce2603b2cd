"""A process that a dead supervisor has left behind."""

import os
import subprocess
import time
from pathlib import Path

from timmgate.system import process_tree


def left_behind(namespace: str, **options: object) -> subprocess.Popen:
    """A process that sleeps, with the mark of a supervisor in this namespace of ids that is gone.

    Its environment can be read: that comes some time after it has started.
    """
    gone = subprocess.Popen(["true"])
    gone.wait()
    mark = f"{gone.pid} 1 {namespace}"
    process = subprocess.Popen(["sleep", "600"], env={**os.environ, process_tree.SUPERVISOR: mark}, **options)
    while mark.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes():
        time.sleep(0.01)
    return process

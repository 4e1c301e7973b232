"""What a user waits for before anything happens, and the memory that it takes."""

import subprocess
import sys
import time

IMPORTS = ("import isthmus", "from isthmus.kernels import cpu", "import isthmus.models")
HIGH_WATER = "; print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"


class Startup:
    params = (*IMPORTS, "isthmus --help")
    param_names = ("what",)
    unit = "seconds"

    def track_seconds(self, what):
        arguments = ["-c", what] if what in IMPORTS else ["-m", *what.split()]
        samples = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            samples.append(time.perf_counter() - start)
        return {"samples": samples, "number": 1}


class Memory:
    params = IMPORTS
    param_names = ("what",)
    unit = "bytes"

    def track_peak(self, what):
        """Not of rusage: that counts what the parent held when it forked."""
        done = subprocess.run(
            [sys.executable, "-c", what + HIGH_WATER], check=True, text=True, stdout=subprocess.PIPE
        )
        return 1024 * int(done.stdout)

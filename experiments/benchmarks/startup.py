"""What a user waits for before anything happens."""

import subprocess
import sys
import time


class Startup:
    params = ("import isthmus", "isthmus.cli --help")
    param_names = ("what",)
    unit = "seconds"

    def track_seconds(self, what):
        command = [sys.executable, *(["-c", what] if what.startswith("import") else
                                     ["-m", *what.split()])]
        samples = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            samples.append(time.perf_counter() - start)
        return {"samples": samples, "number": 1}

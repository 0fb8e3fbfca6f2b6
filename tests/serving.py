"""A `linnet serve` process for tests: on a free port, which it tells on stderr."""
import os
import re
import signal
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINNET = os.environ.get("LINNET", os.path.join(ROOT, "linnet"))
CHAT = os.path.join(ROOT, "tests", "data", "cli", "chat.gguf")


class Serving:
    """with Serving(model, "--slots", "2") as s: s.url, s.port, s.process, s.log()"""

    def __init__(self, model=CHAT, *flags, threads=1, environment=None):
        self.file = tempfile.TemporaryFile("w+b")
        self.process = subprocess.Popen(
            [LINNET, "serve", model, "--port", "0", "-t", str(threads), "--backend", "cpu", *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.file,
            env={**os.environ, **(environment or {})})
        end = time.time() + 60
        while not (told := re.search(r"http://[^\s/]+:(\d+)/", self.log())):
            if self.process.poll() is not None or time.time() > end:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"linnet serve does not tell its port:\n{self.log()}")
            time.sleep(0.02)
        self.port = int(told[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def log(self):
        at = os.fstat(self.file.fileno()).st_size
        return os.pread(self.file.fileno(), at, 0).decode(errors="replace")

    def stop(self, with_signal=signal.SIGTERM, seconds=60):
        """-> the exit status"""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
            timer = threading.Timer(seconds, self.process.kill)
            timer.start()
            self.process.wait()
            timer.cancel()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.file.close()

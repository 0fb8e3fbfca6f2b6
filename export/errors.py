"""The one error of this package and the small talk on stderr."""
import sys
import time


class ExportError(Exception):
    """A sentence for the user: what, where, expected, found."""


def note(text):
    print(f"export: {text}", file=sys.stderr, flush=True)


def names(items, most=6):
    """A list for one line of talk."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


class Progress:
    """A bar on a terminal's stderr; nothing elsewhere."""

    WIDTH = 30

    def __init__(self, what, total):
        self.what, self.total, self.done = what, max(total, 1), 0
        self.live = sys.stderr.isatty()
        self.last = 0.0

    def add(self, n):
        self.done += n
        now = time.monotonic()
        if self.live and (now - self.last > 0.1 or self.done >= self.total):
            self.last = now
            part = min(self.done / self.total, 1.0)
            bar = "#" * int(part * self.WIDTH)
            print(f"\r{self.what} [{bar:<{self.WIDTH}}] {part:4.0%}", end="", file=sys.stderr,
                  flush=True)

    def close(self):
        if self.live and self.done:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

"""Loss curves of runs as one SVG: a panel per measure, a line per run."""
import json
import math
import os

from bench.picture import CURVES, INK, Svg, number, step_of

from ..config import TrainError

WIDTH, HEIGHT, LEFT, TOP, GAP = 420, 240, 64, 70, 84
COLORS = ("#0072b2", *CURVES)
TITLES = {"loss": "stage 1: squared error / squared target", "kl": "stage 2: KL to the teacher",
          "ce": "stage 2: cross-entropy of the text"}


def read(folder):
    """-> {measure: [(tokens, value)]} of training, of validation"""
    path, training, held = os.path.join(folder, "curve.jsonl"), {}, {}
    try:
        with open(path) as f:
            rows = [json.loads(line) for line in f]
    except (OSError, ValueError) as e:
        raise TrainError(f"{path}: {e}")
    for row in rows:
        if not isinstance(row, dict) or "tokens" not in row:
            raise TrainError(f"{path}: expected rows with tokens, as train.linearize writes them")
        for into, values in ((training, row), (held, row.get("validation", {}))):
            for key, v in values.items():
                if key in TITLES and not (key == "loss" and "kl" in values):
                    into.setdefault(key, []).append((row["tokens"], v))
    return training, held


def draw(folders):
    runs = [(os.path.basename(os.path.dirname(os.path.abspath(f))), *read(f)) for f in folders]
    names = list(dict.fromkeys(name for name, *_ in runs))
    colors = [COLORS[names.index(name) % len(COLORS)] for name, *_ in runs]  # both stages of a config have one
    measures = [m for m in TITLES if any(m in t or m in h for *_, t, h in runs)]
    if not measures:
        raise TrainError("nothing to draw: the runs have no rows yet")
    svg = Svg(LEFT + len(measures) * (WIDTH + GAP), TOP + HEIGHT + 70 + 18 * len(names))
    svg.text(20, 28, "Linearization: training (thin) and held-out text (thick)", 16, "start", font_weight="bold")
    for n, measure in enumerate(measures):
        panel(svg, LEFT + n * (WIDTH + GAP), measure, runs, colors)
    for n, name in enumerate(names):
        y = TOP + HEIGHT + 66 + 18 * n
        svg.line(LEFT, y - 4, LEFT + 22, y - 4, COLORS[n % len(COLORS)], 3)
        svg.text(LEFT + 30, y, name, 12, "start")
    return str(svg)


def panel(svg, x, measure, runs, colors):
    points = [p for *_, t, h in runs for p in t.get(measure, []) + h.get(measure, [])]
    # A first value far above the rest would leave it a flat line.
    values = sorted(v for _, v in points)
    middle, right = values[len(values) // 2], max(p[0] for p in points) or 1
    # The text's own entropy is most of a cross-entropy.
    low = 0.95 * values[0] if measure == "ce" else 0
    high = min(values[-1], low + 2.5 * (middle - low)) + 0.05 * (middle - low)
    bottom = TOP + HEIGHT

    def at(p):
        return x + WIDTH * p[0] / right, bottom - HEIGHT * (min(p[1], high) - low) / (high - low)

    svg.text(x, TOP - 14, TITLES[measure], 13, "start", font_weight="bold")
    step = step_of(high - low)
    for i in range(math.ceil(low / step), int(high / step) + 1):
        y = at((0, i * step))[1]
        svg.line(x, y, x + WIDTH, y)
        svg.text(x - 6, y + 4, number(i * step), 11, "end")
    step = step_of(right)
    for i in range(math.floor(right / step) + 1):
        svg.text(at((i * step, low))[0], bottom + 18,
                 f"{i * step / 1e6:g} M" if right >= 2e6 else f"{i * step / 1000:,.0f} k", 11)
    svg.line(x, bottom, x + WIDTH, bottom, INK)
    svg.text(x + WIDTH / 2, bottom + 38, "tokens", 12)
    for color, (*_, training, held) in zip(colors, runs):
        for line, width in ((training, 1), (held, 3)):
            if line.get(measure):
                svg.add("polyline", points=" ".join("%.1f,%.1f" % at(p) for p in line[measure]), fill="none",
                        stroke=color, stroke_width=float(width))


def write(folders, out):
    text = draw(folders)
    with open(out, "w") as f:
        f.write(text)

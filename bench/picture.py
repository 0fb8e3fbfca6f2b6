#!/usr/bin/env python3
"""Draws what bench/peers.py measured as one SVG: decoding by type of weights, and over depth.

    python3 bench/picture.py FILE.jsonl OUT.svg

Above: bars, a panel per number of threads; a pair of bars (linnet, llama.cpp) for each model of softmax
attention alone whose tests have one tgN; a line for the limit, the memory's speed of the same
rounds / the bytes of weights per token. Below: the models with tests tgN@D at two depths or more,
at the highest number of threads that has them, both axes logarithmic. Standard library alone."""
import math
import os
import sys
from html import escape

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from peers import PeersError, Samples, Test, read_samples

# Okabe and Ito's colours, which colour-blind people tell apart; the limit is drawn in ink.
LINNET, LLAMA, INK, FAINT, PAPER = "#0072b2", "#e69f00", "#24292f", "#d8dee4", "#ffffff"
CURVES = ("#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d00", "#555555")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 4", "12 4")
WIDTH, HEIGHT, TOP, GAP = 560, 250, 96, 74  # of a panel; of what is above and left of it


class Svg:
    def __init__(self, width, height):
        self.width, self.height, self.parts = width, height, []

    def add(self, tag, text=None, **attributes):
        a = "".join(f' {k.replace("_", "-")}="{v if isinstance(v, str) else f"{v:.1f}"}"'
                    for k, v in attributes.items() if v != "")
        self.parts.append(f"<{tag}{a}/>" if text is None else f"<{tag}{a}>{escape(text)}</{tag}>")

    def text(self, x, y, text, size=12, anchor="middle", **more):
        self.add("text", text, x=x, y=y, font_size=float(size), text_anchor=anchor, **{"fill": INK, **more})

    def line(self, x1, y1, x2, y2, stroke=FAINT, width=1, **more):
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, **more)

    def rect(self, x, y, width, height, fill):
        self.add("rect", x=x, y=y, width=width, height=height, fill=fill)

    def __str__(self):
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
                          f'width="{self.width:.0f}" height="{self.height:.0f}" '
                          'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif">',
                          # A page of its own: legible whatever is behind it.
                          f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
                          *self.parts, "</svg>", ""])


def number(v):
    return f"{v:,.0f}" if v >= 100 else f"{v:.3g}"


def step_of(top):
    """1, 2 or 5 times a power of ten: about five steps to the top."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    return next(m * power for m in (1, 2, 5, 10) if m * power * 6 > top)


# ---- What is drawn -----------------------------------------------------------------------------

def mixer_name(row):
    return " + ".join(dict.fromkeys(m.replace("_", " ") for m in row["mixers"]))


def type_name(row):
    return row["model_type"].split()[-1]


def distinct(names, models):
    """Two models that would have one name get that of their file too."""
    stems = [os.path.splitext(m)[0] for m in models]
    return [n if names.count(n) == 1 else f"{n}, {s}" for n, s in zip(names, stems)]


def bars_of(s, threads):
    """[name, linnet, llama.cpp or None, limit or None] per softmax model with a tgN at depth 0."""
    found = []
    for model in s.models:
        tests = [r[1] for r in s.rows if r[0] == model and r[2] == threads and Test(r[1]).kind == "tg" and
                 not Test(r[1]).depth]
        row = tests and s.linnet_row(model, tests[0], threads)
        if not row or set(row["mixers"]) != {"softmax"}:
            continue
        memory = s.median("probe", model, tests[0], threads)
        found.append((model, type_name(row), s.median("linnet", model, tests[0], threads),
                      s.median("llama", model, tests[0], threads),
                      memory and memory * 1e9 / row["weight_bytes_read_per_token"]))
    names = distinct([f[1] for f in found], [f[0] for f in found])
    return [(n, *f[2:]) for n, f in zip(names, found)]


def curves_of(s):
    """-> threads, [name, is llama.cpp, [(depth, tok/s)]]"""
    deep = [r for r in s.rows if Test(r[1]).kind == "tg" and Test(r[1]).depth]
    if not deep:
        return 0, []
    threads = max(r[2] for r in deep)
    found = []
    for who in ("linnet", "llama"):
        for model in s.models:
            tests = sorted((Test(r[1]).depth, r[1]) for r in deep if r[0] == model and r[2] == threads)
            points = [(d, s.median(who, model, t, threads)) for d, t in tests]
            points = [p for p in points if p[1]]
            if len(points) >= 2:
                row = s.linnet_row(model, tests[0][1], threads)
                found.append((who, model, row, points))
    names = [("llama.cpp, " if w == "llama" else "linnet, ") + mixer_name(r) for w, _, r, _ in found]
    names = [n if names.count(n) == 1 else f"{n}, {type_name(f[2])}" for n, f in zip(names, found)]
    names = distinct(names, [f[1] for f in found])
    return threads, [(n, f[0] == "llama", f[3]) for n, f in zip(names, found)]


# ---- Panels ------------------------------------------------------------------------------------

def draw_bars(svg, x, bottom, width, bars, title, top):
    svg.text(x, bottom - HEIGHT - 16, title, 13, "start", font_weight="bold")
    step, scale = step_of(top), HEIGHT / (top * 1.08)
    for i in range(int(top * 1.08 / step) + 1):
        y = bottom - i * step * scale
        svg.line(x, y, x + width, y)
        svg.text(x - 6, y + 4, number(i * step), 11, "end")
    group = width / len(bars)
    bar = min(34.0, group * 0.38)
    for i, (name, ours, theirs, limit) in enumerate(bars):
        middle = x + (i + 0.5) * group
        for value, left, color, ink in ((ours, middle - bar - 1, LINNET, PAPER), (theirs, middle + 1, LLAMA, INK)):
            if value:
                end = bottom - value * scale
                svg.rect(left, end, bar, value * scale, color)
                inside = value * scale > 32 and 6.2 * len(number(value)) < bar
                y = end + 13 if inside else end - 4
                # Out of the way of the limit's line.
                if limit and inside and -3 < bottom - limit * scale - (y - 8) < 14:
                    y = bottom - limit * scale + 14
                elif limit and not inside and -12 < bottom - limit * scale - y < 4:
                    y = bottom - limit * scale - 5
                svg.text(left + bar / 2, y, number(value), 10, fill=ink if inside else INK)
        if limit:
            y = bottom - limit * scale
            svg.line(middle - bar - 5, y, middle + bar + 5, y, PAPER, 4)
            svg.line(middle - bar - 5, y, middle + bar + 5, y, INK, 2)
        lines = name.split(", ")
        for k, words in enumerate(lines):
            svg.text(middle, bottom + 18 + 13 * k, words, 12 if k == 0 else 10)
    svg.line(x, bottom, x + width, bottom, INK)
    svg.add("text", "tokens per second", x=0.0, y=0.0, font_size=12.0, fill=INK, text_anchor="middle",
            transform=f"translate({x - 50:.1f} {bottom - HEIGHT / 2:.1f}) rotate(-90)")


def apart(wanted, least):
    """Heights near the wanted ones, in the same order, at least so far apart."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    at = dict(zip(order, sorted(wanted)))
    for _ in range(200):
        for a, b in zip(order, order[1:]):
            lack = least - (at[b] - at[a])
            if lack > 0:
                at[a] -= lack / 2
                at[b] += lack / 2
    return [at[i] for i in range(len(wanted))]


def draw_curves(svg, x, bottom, width, threads, curves):
    svg.text(x, bottom - HEIGHT - 16, f"Over depth, {threads_text(threads)}", 13, "start", font_weight="bold")
    depths = sorted({d for _, _, p in curves for d, _ in p})
    speeds = [v for _, _, p in curves for _, v in p]
    low, high = math.log(min(speeds) / 1.3), math.log(max(speeds) * 1.3)
    first, last = math.log(depths[0]), math.log(depths[-1])
    px = lambda d: x + 10 + (width - 20) * (math.log(d) - first) / (last - first)
    py = lambda v: bottom - HEIGHT * (math.log(v) - low) / (high - low)
    ticks = [m * 10.0 ** e for e in range(-3, 9) for m in (1, 2, 5) if low <= math.log(m * 10.0 ** e) <= high]
    if len(ticks) > 8:
        ticks = [t for t in ticks if math.log10(t) % 1 < 0.01 or math.log10(t) % 1 > 0.99]
    for t in ticks:
        svg.line(x, py(t), x + width, py(t))
        svg.text(x - 6, py(t) + 4, number(t), 11, "end")
    before = -1e9
    for d in depths:
        svg.line(px(d), bottom - HEIGHT, px(d), bottom)
        if px(d) - before > 34:
            svg.text(px(d), bottom + 18, f"{d}", 11)
            before = px(d)
    svg.line(x, bottom, x + width, bottom, INK)
    labels = apart([py(p[-1][1]) for _, _, p in curves], 15)
    others, seen = iter(CURVES * len(curves)), {}
    for (name, peer, points), at in zip(curves, labels):
        family = "llama.cpp" if peer else name.split(", ")[1]
        color = LLAMA if peer else LINNET if family == "softmax" else next(others)
        # Curves of one colour differ in their dashes, and so do all but the first two.
        kind = family if peer or family == "softmax" else "others"
        seen[kind] = seen.get(kind, -1) + 1
        dash = DASHES[(seen[kind] + (kind == "others")) % len(DASHES)]
        svg.add("polyline", points=" ".join(f"{px(d):.1f},{py(v):.1f}" for d, v in points), fill="none",
                stroke=color, stroke_width=2.5, stroke_dasharray=dash)
        for d, v in points:
            if peer:
                svg.rect(px(d) - 3.5, py(v) - 3.5, 7, 7, color)
            else:
                svg.add("circle", cx=px(d), cy=py(v), r=3.5, fill=color)
        end = px(points[-1][0])
        svg.add("polyline", points=f"{end + 6:.1f},{py(points[-1][1]):.1f} {x + width + 14:.1f},{at:.1f} "
                f"{x + width + 20:.1f},{at:.1f}", fill="none", stroke=color)
        svg.text(x + width + 24, at + 4, f"{name}: {number(points[-1][1])}", 12, "start")
    svg.text(x + width / 2, bottom + 40, "tokens in the context before", 12)
    svg.add("text", "tokens per second", x=0.0, y=0.0, font_size=12.0, fill=INK, text_anchor="middle",
            transform=f"translate({x - 50:.1f} {bottom - HEIGHT / 2:.1f}) rotate(-90)")


def threads_text(n):
    return f"{n} thread{'' if n == 1 else 's'}"


def draw(setup, samples):
    s = Samples(samples)
    panels = [(t, b) for t in dict.fromkeys(r[2] for r in s.rows) for b in [bars_of(s, t)] if b]
    threads, curves = curves_of(s)
    if not panels and not curves:
        raise PeersError("nothing to draw: no test tgN of a softmax model, nor tgN@D at two depths")
    widths = [max(220, 74 * len(b)) for _, b in panels]
    names = max((len(c[0]) for c in curves), default=0)
    lines = max((n.count(", ") for _, b in panels for n, *_ in b), default=0)
    second = TOP + HEIGHT + 88 + 13 * lines if panels else TOP  # top of the curves
    height = (second + HEIGHT + 80) if curves else TOP + HEIGHT + 60 + 13 * lines
    svg = Svg(max(24 + sum(w + GAP for w in widths), (WIDTH + GAP + 90 + 7.4 * names) * bool(curves), 640), height)
    svg.text(20, 30, "Decoding speed, linnet and llama.cpp", 17, "start", font_weight="bold")
    x = 20.0
    for color, label in ((LINNET, "linnet"), (LLAMA, "llama.cpp"), (None, "limit: memory speed / bytes of weights")):
        if color:
            svg.rect(x, 43, 12, 12, color)
        elif any(b[3] for _, bars in panels for b in bars):
            svg.line(x, 49, x + 18, 49, INK, 2)
        else:
            continue
        svg.text(x + (18 if color else 24), 53, label, 12, "start")
        x += 40 + 7.5 * len(label)
    top = max((v for _, bars in panels for b in bars for v in b[1:] if v), default=1)
    x = float(GAP)
    for (t, bars), width in zip(panels, widths):
        draw_bars(svg, x, TOP + HEIGHT, width, bars, f"By type of weights, {threads_text(t)}", top)
        x += width + GAP
    if curves:
        draw_curves(svg, float(GAP), second + HEIGHT, WIDTH, threads, curves)
    counts = [len(s.values("linnet", *r)) for r in s.rows]
    svg.text(20, svg.height - 12, f"{setup['cpu']}, {setup['processors']} processors; {setup['date']}; linnet "
             f"{setup['linnet']}; {setup['llama']}; medians of {min(counts)} interleaved round"
             f"{'' if min(counts) == 1 else 's'}", 10.5, "start")
    return str(svg)


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        setup, samples = read_samples(sys.argv[1])
        if not setup:
            raise PeersError(f"{sys.argv[1]}: no setup line")
        text = draw(setup, samples)
        with open(sys.argv[2], "w") as f:
            f.write(text)
    except PeersError as e:
        print(f"picture: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"picture: {e.filename}: {e.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

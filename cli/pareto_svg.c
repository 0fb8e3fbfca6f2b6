/* A chart as SVG: one colour and marker per family, the frontier as a step line, intervals as bars.
 * It knows nothing of models; pareto_chart.c makes its points. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pareto.h"

/* Colours that colour-blind people tell apart (after Okabe and Ito), on white and on black, each
 * with a marker of its own; the first are those of the mixers named. */
static const struct {
    const char *mixer, *light, *dark;
} colors[] = {
    {"softmax", "#0072b2", "#58b0ee"},         {"sliding_window", "#a67c00", "#e9bd35"},
    {"based_taylor", "#00835f", "#3fcf9f"},    {"delta_net", "#d04a02", "#ff9152"},
    {"gated_delta_net", "#a83279", "#f08cc8"}, {"hedgehog", "#6b4fbb", "#b6a1ff"},
    {"lolcats", "#5d6b78", "#aeb9c4"},         {"short_conv", "#7a3e12", "#d9a679"},
};
enum { N_COLORS = sizeof colors / sizeof *colors };

enum { WIDTH = 860, LEFT = 74, RIGHT = 26, PLOT_HEIGHT = 430, LINE = 16 };

int chart_slot(const char *mixer, const bool *taken) {
    int slot = 0;
    while (slot < N_COLORS && strcmp(colors[slot].mixer, mixer))
        slot++;
    if (slot < N_COLORS && !taken[slot]) return slot;
    for (slot = 0; slot < N_SLOTS && taken[slot]; slot++) {
    }
    return slot < N_SLOTS ? slot : 0;
}

/* ---- frontier ----------------------------------------------------------------------------- */

size_t chart_frontier(chart_point *at, size_t n, bool x_more, bool y_more) {
    size_t n_best = 0;
    for (size_t i = 0; i < n; i++) {
        at[i].best = true;
        for (size_t k = 0; k < n && at[i].best; k++) {
            double dx = x_more ? at[k].x - at[i].x : at[i].x - at[k].x; /* k is better by */
            double dy = y_more ? at[k].y - at[i].y : at[i].y - at[k].y;
            at[i].best = !(dx >= 0 && dy >= 0 && (dx > 0 || dy > 0));
        }
        n_best += at[i].best;
    }
    return n_best;
}

/* ---- text --------------------------------------------------------------------------------- */

/* The next character and its length in bytes; the text is valid UTF-8 (jansson checked). */
static unsigned next_character(const char **text) {
    const unsigned char *p = (const unsigned char *)*text;
    unsigned c = p[0];
    int more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    if (more) c &= 0x3fu >> more;
    for (int i = 1; i <= more && p[i]; i++)
        c = c << 6 | (p[i] & 0x3f);
    *text += 1 + more;
    return c;
}

/* About the width in ems, in a sans-serif face on the wide side. */
static double character_width(unsigned c) {
    if (c < 0x80) {
        if (strchr("iljI.,:;'|!()[] ", (int)c)) return 0.36;
        if (strchr("mwMW@%", (int)c)) return 0.95;
        return c >= 'A' && c <= 'Z' ? 0.72 : 0.62;
    }
    if ((c >= 0x300 && c < 0x370) || c == 0x200d) return 0;
    return c >= 0x1100 && !(c >= 0x2000 && c < 0x2070) ? 1.05 : 0.68;
}

static double text_width(const char *text, double size) {
    double w = 0;
    while (*text)
        w += character_width(next_character(&text));
    return w * size;
}

static void add_text(page *p, double x, double y, const char *class, const char *anchor,
                     const char *text) {
    page_add(p, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", class, x, y,
             anchor);
    page_xml(p, text);
    page_add(p, "</text>\n");
}

/* Words wrapped into lines, each a <text>; returns the height used. p NULL only measures. */
static double add_wrapped(page *p, double x, double y, double width, double size, const char *class,
                          const char *text) {
    page line = {0};
    double used = 0, height = 0;
    while (text && (*text || line.text.n)) {
        size_t n = strcspn(text, " \n"), whole = n;
        page word = {0};
        page_add(&word, "%.*s", (int)n, text);
        double w = text_width(page_text(&word), size);
        bool end = !*text;
        while (w > width && n > 8) { /* a word without spaces: cut it between characters */
            do
                n--;
            while (n > 1 && ((unsigned char)text[n] & 0xc0) == 0x80);
            page_clear(&word);
            page_add(&word, "%.*s", (int)n, text);
            w = text_width(page_text(&word), size);
        }
        if (line.text.n && (end || used + 0.36 * size + w > width)) {
            if (p) add_text(p, x, y + height + size, class, "start", page_text(&line));
            height += size + 5;
            page_clear(&line);
            used = 0;
        }
        if (!end) {
            used += (line.text.n ? 0.36 * size : 0) + w;
            page_add(&line, "%s%s", line.text.n ? " " : "", page_text(&word));
            bool newline = n == whole && text[n] == '\n';
            text += n;
            if (n == whole && *text) text++;
            if (newline && line.text.n) {
                if (p) add_text(p, x, y + height + size, class, "start", page_text(&line));
                height += size + 5;
                page_clear(&line);
                used = 0;
            }
        }
        bool stop = word.failed || line.failed;
        if (p && stop) p->failed = true;
        page_free(&word);
        if (stop) break;
    }
    page_free(&line);
    return height;
}

/* ---- axes --------------------------------------------------------------------------------- */

typedef struct {
    double low, high; /* of the values */
    double end;       /* of fractions: where the ticks end; high leaves room above */
    double from, to;  /* in pixels */
    bool log;
} scale;

static double place(const scale *s, double v) {
    double a = s->log ? log(v / s->low) / log(s->high / s->low) : (v - s->low) / (s->high - s->low);
    return s->from + a * (s->to - s->from);
}

enum { MAX_TICKS = 64 };

typedef struct {
    double at[MAX_TICKS];
    int n;
} tick_list;

static void add_tick(tick_list *t, const scale *s, double v) {
    double slack = s->log ? 1 + 1e-9 : 1;
    double least = s->log ? s->low / slack : s->low - 1e-9 * (s->high - s->low),
           most = s->log ? s->high * slack : s->high + 1e-9 * (s->high - s->low);
    if (t->n < MAX_TICKS && v >= least && v <= most) t->at[t->n++] = v;
}

/* 1, 2, 4 ... 512 of each unit: the label is exact, the distance a doubling (1.95 at the unit's
 * change). */
static void byte_ticks(tick_list *t, const scale *s) {
    for (double unit = 1; unit < 1e15; unit *= 1000)
        for (double v = 1; v < 1000; v *= 2)
            add_tick(t, s, v * unit);
    for (int step = 2; t->n > 12; step = 2) { /* every second, from the first */
        int n = 0;
        for (int i = 0; i < t->n; i += step)
            t->at[n++] = t->at[i];
        t->n = n;
    }
}

static void decimal_ticks(tick_list *t, const scale *s) {
    static const double fine[] = {1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9}, middle[] = {1, 1.5, 2, 3, 5, 7},
                        coarse[] = {1, 2, 5};
    double ratio = s->high / s->low;
    const double *steps = ratio > 12 ? coarse : ratio > 4 ? middle : fine;
    int n = ratio > 12 ? 3 : ratio > 4 ? 6 : 10;
    for (int e = -9; e < 15; e++)
        for (int i = 0; i < n; i++)
            if (ratio < 1e4 || i == 0) add_tick(t, s, steps[i] * pow(10, e));
}

static void linear_ticks(tick_list *t, const scale *s) {
    double span = s->high - s->low, power = pow(10, floor(log10(span / 5)));
    double step = power * (span / power > 25 ? 5 : span / power > 10 ? 2 : 1);
    for (double i = ceil(s->low / step - 1e-9); i * step <= s->high * (1 + 1e-9); i++)
        add_tick(t, s, i * step);
}

void bytes_label(char *out, size_t size, double bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    int unit = 0;
    for (; bytes >= 999.5 && unit < 5; unit++)
        bytes /= 1000;
    bool whole = fabs(bytes - round(bytes)) < 0.005 || bytes >= 100;
    snprintf(out, size, "%.*f %s", whole ? 0 : 1, bytes, units[unit]);
}

static void tick_label(char *out, size_t size, double v, axis_unit unit, bool log_axis) {
    if (unit == UNIT_BYTES && log_axis)
        bytes_label(out, size, v);
    else if (v >= 1e6)
        snprintf(out, size, "%gM", v / 1e6);
    else
        snprintf(out, size, "%.6g", v);
}

/* Room beside the outermost points, and at least a factor of 4 in all. */
static scale x_scale(const chart *c) {
    scale s = {.low = INFINITY, .high = 0, .from = LEFT, .to = WIDTH - RIGHT, .log = true};
    for (size_t i = 0; i < c->n; i++) {
        s.low = fmin(s.low, c->at[i].x);
        s.high = fmax(s.high, c->at[i].x);
    }
    double ratio = s.high / s.low;
    double wanted = fmax(4, ratio * pow(ratio, 0.2));
    double room = sqrt(wanted / ratio);
    s.low /= room;
    s.high *= room;
    return s;
}

static scale y_scale(const chart *c, double top) {
    scale s = {.low = INFINITY, .high = -INFINITY, .from = top + PLOT_HEIGHT, .to = top};
    for (size_t i = 0; i < c->n; i++) {
        s.low = fmin(s.low, fmin(c->at[i].y, c->at[i].low)); /* fmin and fmax pass over NaN */
        s.high = fmax(s.high, fmax(c->at[i].y, c->at[i].high));
    }
    if (c->y_fraction) {
        s.low = s.low > 0.55 ? floor((s.low - 0.02) * 10) / 10 : 0;
        s.high = s.end = s.high < 0.45 ? ceil((s.high + 0.01) * 20) / 20 : 1;
        double spare = (s.high - s.low) * 0.03; /* markers at 0 and 1 stay whole, */
        s.low -= spare;
        s.high += 2.5 * spare; /* and names fit above */
    } else {
        double span = fmax(s.high - s.low, 0.1 * s.high);
        s.low = fmax(0, s.low - 0.15 * span);
        s.high += 0.15 * span;
    }
    return s;
}

/* ---- markers ------------------------------------------------------------------------------ */

/* A path about (0, 0) of about the same area for all. */
static void marker_path(page *p, int slot, double r) {
    int kind = slot % 8, sides = 0, turn = 0, inner = 0;
    switch (kind) {
    case 0: /* circle */
        page_add(p, "M%.2f 0a%.2f %.2f 0 1 0 %.2f 0a%.2f %.2f 0 1 0 %.2f 0Z", -r, r, r, 2 * r, r, r,
                 -2 * r);
        return;
    case 1: /* square */
        page_add(p, "M%.2f %.2fH%.2fV%.2fH%.2fZ", -0.9 * r, -0.9 * r, 0.9 * r, 0.9 * r, -0.9 * r);
        return;
    case 2: /* diamond */
        sides = 4;
        r *= 1.3;
        break;
    case 3: /* triangle, point up */
        sides = 3;
        r *= 1.35;
        break;
    case 4: /* triangle, point down */
        sides = 3;
        turn = 1;
        r *= 1.35;
        break;
    case 5: /* star */
        sides = 5;
        inner = 1;
        r *= 1.45;
        break;
    case 6: /* cross */
        page_add(p, "M%.2f %.2fh%.2fv%.2fh%.2fv%.2fh%.2fv%.2fh%.2fv%.2fh%.2fv%.2fh%.2fZ", -0.42 * r,
                 -1.2 * r, 0.84 * r, 0.78 * r, 0.78 * r, 0.84 * r, -0.78 * r, 0.78 * r, -0.84 * r,
                 -0.78 * r, -0.78 * r, -0.84 * r, 0.78 * r);
        return;
    default: /* hexagon */
        sides = 6;
        r *= 1.1;
    }
    int n = sides * (1 + inner);
    for (int i = 0; i < n; i++) {
        double angle = 3.14159265358979 * (2.0 * i / n + turn - 0.5);
        double length = inner && i % 2 ? 0.45 * r : r;
        page_add(p, "%s%.2f %.2f", i ? "L" : "M", length * cos(angle), length * sin(angle));
    }
    page_add(p, "Z");
}

static int color_of(int slot) {
    return (slot + slot / N_COLORS * 3) % N_COLORS; /* another pair with the marker each round */
}

static void add_marker(page *p, int slot, double x, double y, double r, bool filled) {
    page_add(p, "<path class=\"mark s%d%s\" transform=\"translate(%.1f %.1f)\" d=\"",
             color_of(slot), filled ? "" : " open", x, y);
    marker_path(p, slot, r);
    page_add(p, "\"/>");
}

static void add_style(page *p) {
    page_add(
        p,
        "<style>\n"
        ".paper{fill:#ffffff}.ink{fill:#1f2328}.faint{fill:#57606a}\n"
        ".title{font-size:17px;font-weight:bold}.sub{font-size:12.5px}.note{font-size:11px}."
        "warning{fill:#b3261e;font-weight:bold}"
        ".tick{font-size:11px}.axis{font-size:12.5px}.label{font-size:11px}.key{font-size:12px}\n"
        ".grid{stroke:#e4e8ec;stroke-width:1}.frame{stroke:#57606a;stroke-width:1}\n"
        ".step{fill:none;stroke:#57606a;stroke-width:1.6;stroke-dasharray:6 4}\n"
        ".lead{stroke:#8c959f;stroke-width:.8}.halo{stroke:#ffffff;stroke-width:3;"
        "stroke-linejoin:round;paint-order:stroke}\n"
        ".mark{stroke-width:2;stroke-linejoin:round}.open{fill:#ffffff}"
        ".bar{stroke-width:1.3;fill:none;opacity:.65}\n");
    for (int i = 0; i < N_COLORS; i++)
        page_add(p, ".s%d{fill:%s;stroke:%s}.b%d{stroke:%s}", i, colors[i].light, colors[i].light,
                 i, colors[i].light);
    page_add(p, "\n.mark.open{fill:#ffffff}\n@media (prefers-color-scheme:dark){\n"
                ".paper{fill:#0d1117}.ink{fill:#e6edf3}.faint{fill:#9da7b1}.warning{fill:#ff8a80}."
                "grid{stroke:#242c35}"
                ".frame,.step{stroke:#9da7b1}.lead{stroke:#6e7781}.halo{stroke:#0d1117}\n");
    for (int i = 0; i < N_COLORS; i++)
        page_add(p, ".s%d{fill:%s;stroke:%s}.b%d{stroke:%s}", i, colors[i].dark, colors[i].dark, i,
                 colors[i].dark);
    page_add(p, "\n.mark.open{fill:#0d1117}\n}\n</style>\n");
}

/* ---- labels ------------------------------------------------------------------------------- */

typedef struct {
    double x1, y1, x2, y2;
} box;

static bool overlap(const box *a, const box *b) {
    return a->x1 < b->x2 && b->x1 < a->x2 && a->y1 < b->y2 && b->y1 < a->y2;
}

typedef struct {
    box *hard; /* labels and markers: never covered */
    size_t n_hard;
    box *soft; /* lines: rather not */
    size_t n_soft;
    box plot;
} obstacles;

/* A name of at most 34 characters: the middle gives way, since ends tell models apart. */
static void shorten(const char *text, page *out) {
    enum { MOST = 34, KEPT = 16 };
    size_t n = 0;
    for (const char *p = text; *p; n++)
        next_character(&p);
    if (n <= MOST) {
        page_add(out, "%s", text);
        return;
    }
    const char *head = text, *tail = text;
    for (int i = 0; i < KEPT; i++)
        next_character(&head);
    for (size_t i = 0; i + KEPT < n; i++)
        next_character(&tail);
    page_add(out, "%.*s…%s", (int)(head - text), text, tail);
}

enum { LEAD_STEPS = 8 };

/* A step of the line from a point to its name. */
static box lead_box(double x, double y, double to_x, double to_y, int step) {
    double t = (step + 0.5) / LEAD_STEPS, cx = x + t * (to_x - x), cy = y + t * (to_y - y);
    double half_x = fmax(1, fabs(to_x - x) / LEAD_STEPS / 2),
           half_y = fmax(1, fabs(to_y - y) / LEAD_STEPS / 2);
    return (box){cx - half_x, cy - half_y, cx + half_x, cy + half_y};
}

/* Where the line meets the box of a name. */
static void lead_end(const box *b, double x, double y, double *to_x, double *to_y) {
    *to_x = fmin(fmax(x, b->x1), b->x2);
    *to_y = fmin(fmax(y, b->y1 + 3), b->y2 - 3);
}

/* What a line over names and markers costs. */
static double lead_cost(const obstacles *o, double x, double y, const box *b) {
    double to_x, to_y, cost = 0;
    lead_end(b, x, y, &to_x, &to_y);
    for (size_t k = 0; k < o->n_hard; k++) {
        const box *h = &o->hard[k];
        if (x >= h->x1 && x <= h->x2 && y >= h->y1 && y <= h->y2) continue; /* its own marker */
        bool crossed = false;
        for (int i = 0; i < LEAD_STEPS && !crossed; i++) {
            box step = lead_box(x, y, to_x, to_y, i);
            crossed = overlap(&step, h);
        }
        cost += crossed ? 12 : 0;
    }
    return cost;
}

/* Tries places about the point, near ones first; the cheapest one that covers nothing. */
static bool find_place(const obstacles *o, double x, double y, double w, box *best, int *side) {
    static const signed char dirs[8][2] = {{1, 0},  {-1, 0},  {0, -1}, {0, 1},
                                           {1, -1}, {-1, -1}, {1, 1},  {-1, 1}};
    static const double distances[] = {10, 19, 30, 44, 62, 84};
    const double h = 13;
    double least = INFINITY;
    for (int d = 0; d < 6; d++)
        for (int i = 0; i < 8; i++) {
            bool diagonal = dirs[i][0] && dirs[i][1];
            double by = diagonal ? fmax(8.5, distances[d] * 0.75) : distances[d];
            double cx = x + dirs[i][0] * (by + w / 2), cy = y + dirs[i][1] * (by + 5);
            box b = {cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2};
            if (b.x1 < o->plot.x1 + 2 || b.x2 > o->plot.x2 - 2 || b.y1 < o->plot.y1 + 1 ||
                b.y2 > o->plot.y2 - 1)
                continue;
            bool covered = false;
            for (size_t k = 0; k < o->n_hard && !covered; k++)
                covered = overlap(&b, &o->hard[k]);
            if (covered) continue;
            double cost = d * 3 + i * 0.2;
            for (size_t k = 0; k < o->n_soft; k++)
                cost += overlap(&b, &o->soft[k]) ? 2.5 : 0;
            if (cost < least && d > 0) cost += lead_cost(o, x, y, &b);
            if (cost < least && cost < 26) { /* a line over two things tells less than none */
                least = cost;
                *best = b;
                *side = d;
            }
        }
    return isfinite(least);
}

static int label_order(const void *a, const void *b) {
    const chart_point *x = *(chart_point *const *)a, *y = *(chart_point *const *)b;
    if (x->best != y->best) return y->best - x->best;
    if (x->x != y->x) return x->x < y->x ? -1 : 1;
    return x->y < y->y ? 1 : x->y > y->y ? -1 : (x > y) - (x < y);
}

/* Returns how many names found no place. */
static size_t add_labels(page *p, const chart *c, const scale *sx, const scale *sy, obstacles *o,
                         chart_point **order) {
    size_t omitted = 0;
    for (size_t i = 0; i < c->n; i++) {
        const chart_point *pt = order[i];
        double x = place(sx, pt->x), y = place(sy, pt->y);
        page text = {0};
        shorten(pt->label, &text);
        double w = text_width(page_text(&text), 11) + 4;
        box b;
        int distance = 0;
        if (i < 300 && find_place(o, x, y, w, &b, &distance)) {
            double nx, ny;
            lead_end(&b, x, y, &nx, &ny);
            double length = hypot(nx - x, ny - y);
            if (distance > 0 && length > 13) {
                page_add(p,
                         "<line class=\"lead\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                         x + (nx - x) * 8 / length, y + (ny - y) * 8 / length, nx, ny);
                for (int k = 0; k < LEAD_STEPS; k++)
                    o->soft[o->n_soft++] = lead_box(x, y, nx, ny, k);
            }
            /* Towards the point, whatever the width really is. */
            const char *anchor = b.x1 >= x ? "start" : b.x2 <= x ? "end" : "middle";
            double at = b.x1 >= x ? b.x1 + 2 : b.x2 <= x ? b.x2 - 2 : (b.x1 + b.x2) / 2;
            add_text(p, at, (b.y1 + b.y2) / 2 + 4, "label ink halo", anchor, page_text(&text));
            o->hard[o->n_hard++] = b;
        } else {
            omitted++;
        }
        page_free(&text);
    }
    return omitted;
}

/* ---- the chart ---------------------------------------------------------------------------- */

/* Names of the families that occur, in rows; returns the height. p NULL only measures. */
static double add_legend(page *p, const chart *c, double y) {
    double x = LEFT, top = y;
    for (size_t f = 0;; f++) {
        bool line = !c->families[f];
        bool used = line;
        for (size_t i = 0; i < c->n && !used; i++)
            used = c->at[i].family == f;
        if (!used) continue;
        const char *name =
            line ? "frontier: filled markers, no other point is better" : c->families[f];
        double w = (line ? 34 : 22) + text_width(name, 12) + 18;
        if (x + w > WIDTH - RIGHT + 18 && x > LEFT) {
            x = LEFT;
            y += 20;
        }
        if (p && line)
            page_add(p, "<path class=\"step\" d=\"M%.1f %.1fh28\"/>\n", x - 4, y + 8);
        else if (p)
            add_marker(p, c->slots[f], x + 6, y + 8, 5.2, true);
        if (p) add_text(p, x + (line ? 30 : 18), y + 12, "key ink", "start", name);
        x += w;
        if (line) break;
    }
    return y + 24 - top;
}

/* From one best point to the next: along x first, so that the line never promises what is not
 * there. */
static void add_steps(page *p, const chart *c, const scale *sx, const scale *sy,
                      chart_point *const *order, obstacles *o) {
    bool first = true;
    double x = 0, y = 0;
    const double thick = 2;
    for (size_t k = 0; k < c->n; k++) {
        size_t i = c->x_more ? c->n - 1 - k : k; /* best points come first, by x */
        if (!order[i]->best) continue;
        double nx = place(sx, order[i]->x), ny = place(sy, order[i]->y);
        if (first) {
            page_add(p, "<path class=\"step\" d=\"M%.1f %.1f", nx, ny);
        } else {
            page_add(p, "H%.1fV%.1f", nx, ny);
            o->soft[o->n_soft++] = (box){fmin(x, nx), y - thick, fmax(x, nx), y + thick};
            o->soft[o->n_soft++] = (box){nx - thick, fmin(y, ny), nx + thick, fmax(y, ny)};
        }
        x = nx;
        y = ny;
        first = false;
    }
    if (!first) { /* and on: more of what is worse in x buys nothing more */
        double end = c->x_more ? sx->from : sx->to;
        page_add(p, "H%.1f\"/>\n", end);
        o->soft[o->n_soft++] = (box){fmin(x, end), y - thick, fmax(x, end), y + thick};
    }
}

static void add_axes(page *p, const chart *c, const scale *sx, const scale *sy, double top) {
    double bottom = top + PLOT_HEIGHT, last = -INFINITY;
    tick_list tx = {0}, ty = {0};
    char text[64];
    if (c->x_unit == UNIT_BYTES)
        byte_ticks(&tx, sx);
    else
        decimal_ticks(&tx, sx);
    linear_ticks(&ty, sy);
    for (int i = 0; i < ty.n; i++) {
        double y = place(sy, ty.at[i]);
        if (c->y_fraction && ty.at[i] > sy->end + 1e-9) continue;
        page_add(p, "<path class=\"grid\" d=\"M%d %.1fH%d\"/>", LEFT, y, WIDTH - RIGHT);
        tick_label(text, sizeof text, fabs(ty.at[i]) < 1e-12 ? 0 : ty.at[i], UNIT_RATE, false);
        add_text(p, LEFT - 8, y + 4, "tick faint", "end", text);
    }
    for (int i = 0; i < tx.n; i++) {
        double x = place(sx, tx.at[i]);
        page_add(p, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>", x, top, bottom);
        tick_label(text, sizeof text, tx.at[i], c->x_unit, true);
        double half = text_width(text, 11) / 2 + 3;
        if (x - half < last) continue;
        add_text(p, x, bottom + 17, "tick faint", "middle", text);
        last = x + half;
    }
    page_add(p, "<path class=\"frame\" d=\"M%d %.1fH%d\"/>\n", LEFT, bottom, WIDTH - RIGHT);
    page x_title = {0}, y_title = {0};
    page_add(&x_title,
             c->x_more ? "%s (log scale; more is better →)" : "%s (log scale; ← less is better)",
             c->x_title);
    page_add(&y_title, "%s (%s", c->y_title, c->y_more ? "more is better →" : "← less is better");
    if (c->y_fraction && sy->low > 0.1)
        page_add(&y_title, "; the axis starts at %.1f", sy->low + 0.01);
    if (c->y_fraction && sy->end < 1) page_add(&y_title, "; the axis ends at %.2f", sy->end);
    page_add(&y_title, ")");
    add_text(p, (LEFT + WIDTH - RIGHT) / 2.0, bottom + 40, "axis ink", "middle",
             page_text(&x_title));
    page_add(p,
             "<text class=\"axis ink\" text-anchor=\"middle\" transform=\"translate(20 %.1f) "
             "rotate(-90)\">",
             top + PLOT_HEIGHT / 2.0);
    page_xml(p, page_text(&y_title));
    page_add(p, "</text>\n");
    page_free(&x_title);
    page_free(&y_title);
}

static void add_bars(page *p, const chart *c, const scale *sx, const scale *sy, obstacles *o) {
    for (size_t i = 0; i < c->n; i++) {
        const chart_point *pt = &c->at[i];
        if (isnan(pt->low) || isnan(pt->high)) continue;
        double x = place(sx, pt->x), low = place(sy, pt->low), high = place(sy, pt->high);
        page_add(p, "<path class=\"bar b%d\" d=\"M%.1f %.1fV%.1fM%.1f %.1fh8M%.1f %.1fh8\"/>\n",
                 color_of(c->slots[pt->family]), x, low, high, x - 4, low, x - 4, high);
        o->soft[o->n_soft++] = (box){x - 4, fmin(low, high) - 1, x + 4, fmax(low, high) + 1};
    }
}

static void add_points(page *p, const chart *c, const scale *sx, const scale *sy,
                       chart_point *const *order, obstacles *o) {
    for (size_t k = c->n; k-- > 0;) { /* the best ones on top */
        const chart_point *pt = order[k];
        double x = place(sx, pt->x), y = place(sy, pt->y);
        page_add(p, "<g class=\"point\"><title>");
        page_xml(p, pt->hover ? pt->hover : pt->label);
        page_add(p, "</title>");
        int above = 0; /* a point at the same place shows as a rim around those above it */
        for (size_t q = 0; q < k && above < 3; q++)
            above += order[q]->x == pt->x && order[q]->y == pt->y;
        add_marker(p, c->slots[pt->family], x, y, 5.2 * (1 + 0.45 * above), pt->best);
        page_add(p, "</g>\n");
        o->hard[o->n_hard++] = (box){x - 8, y - 8, x + 8, y + 8};
    }
}

bool chart_draw(page *out, const chart *c) {
    page plot = {0}, labels = {0}, caption = {0};
    obstacles o = {.hard = malloc((2 * c->n + 1) * sizeof(box)),
                   .soft = malloc(((3 + LEAD_STEPS) * c->n + 2) * sizeof(box))};
    chart_point **order = malloc((c->n + 1) * sizeof *order);
    if (!o.hard || !o.soft || !order) out->failed = true;
    const double width = WIDTH - LEFT - RIGHT;
    double y = 14;
    y += add_wrapped(NULL, 0, 0, width, 17, "", c->title);
    y += add_wrapped(NULL, 0, 0, width, 12.5, "", c->subtitle) + 6;
    double legend = y;
    y += add_legend(NULL, c, y);
    double top = y + 4, bottom = top + PLOT_HEIGHT;
    scale sx = x_scale(c), sy = y_scale(c, top);
    o.plot = (box){LEFT, top, WIDTH - RIGHT, bottom};
    size_t omitted = 0;
    if (!out->failed) {
        for (size_t i = 0; i < c->n; i++)
            order[i] = &c->at[i];
        qsort(order, c->n, sizeof *order, label_order);
        add_axes(&plot, c, &sx, &sy, top);
        add_steps(&plot, c, &sx, &sy, order, &o);
        add_bars(&plot, c, &sx, &sy, &o);
        add_points(&plot, c, &sx, &sy, order, &o);
        omitted = add_labels(&labels, c, &sx, &sy, &o, order);
    }
    page_add(&caption, "%s", c->caption);
    if (omitted)
        page_add(&caption, "\n%zu name%s left out for want of room; the table has %s.", omitted,
                 omitted == 1 ? " was" : "s were", omitted == 1 ? "it" : "them");
    double note = bottom + 54;
    double warning = note + add_wrapped(NULL, 0, 0, width, 11, "", page_text(&caption));
    double height = warning + add_wrapped(NULL, 0, 0, width * 0.9, 11, "", c->warning) + 10;

    page_add(out,
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" width=\"%d\" "
             "height=\"%.0f\" role=\"img\" font-family=\"DejaVu Sans, Verdana, Helvetica, Arial, "
             "sans-serif\">\n<title>",
             WIDTH, height, WIDTH, height);
    page_xml(out, c->title);
    page_add(out, "</title>\n");
    add_style(out);
    page_add(out, "<rect class=\"paper\" width=\"100%%\" height=\"100%%\" rx=\"8\"/>\n");
    y = 14;
    y += add_wrapped(out, LEFT, y, width, 17, "title ink", c->title);
    add_wrapped(out, LEFT, y, width, 12.5, "sub faint", c->subtitle);
    add_legend(out, c, legend);
    page_add(out, "%s%s", page_text(&plot), page_text(&labels));
    add_wrapped(out, LEFT, note, width, 11, "note faint", page_text(&caption));
    add_wrapped(out, LEFT, warning, width * 0.9, 11, "note warning", c->warning); /* bold */
    page_add(out, "</svg>\n");
    out->failed = out->failed || plot.failed || labels.failed || caption.failed;
    free(o.hard);
    free(o.soft);
    free(order);
    page_free(&plot);
    page_free(&labels);
    page_free(&caption);
    return !out->failed;
}

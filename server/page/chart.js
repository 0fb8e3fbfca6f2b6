/* How the state grows, or does not, with the conversation: bytes of state against tokens. A dot is
 * what the server said after an answer; the line is what this model's state takes at each length,
 * the dashed one what a softmax model of the same shape would keep. */
import { bytes, count, h, plural, svg } from "./dom.js";

const WIDTH = 296, HEIGHT = 176;
const BOX = { left: 8, right: 288, top: 20, bottom: 150 };

/* Points [tokens, bytes] of the model's own line, from the server's table. */
function lineOf(linnet) {
    return Object.entries(linnet.state_bytes ?? {})
        .map(([tokens, size]) => [Number(tokens), Number(size)])
        .filter((point) => point.every(Number.isFinite))
        .sort((a, b) => a[0] - b[0]);
}

/* Bytes of state at a number of tokens; undefined beyond what the server told. */
export function stateAt(linnet, tokens) {
    const line = lineOf(linnet);
    const i = line.findIndex(([x]) => x >= tokens);
    if (i < 0) return undefined;
    if (i === 0) return line[0][1];
    const [[x0, y0], [x1, y1]] = [line[i - 1], line[i]];
    return y0 + ((y1 - y0) * (tokens - x0)) / (x1 - x0);
}

/* A round number of tokens that leaves room to the right of `n`. */
function roof(n) {
    let top = 256;
    while (top < n * 1.15) top *= 2;
    return top;
}

function curve(linnet, width) {
    const inside = lineOf(linnet).filter(([x]) => x < width);
    const end = stateAt(linnet, width);
    return end === undefined ? inside : [...inside, [width, end]];
}

function caption(last, softmax, growing) {
    if (!last) return "After the first answer a dot here tells how much memory the conversation takes.";
    const [tokens, size] = last, full = softmax * tokens;
    const held = `${bytes(size)} for ${plural(tokens, "token")}`;
    if (!softmax) return `${held}.`;
    if (growing && full <= size * 1.2) return `${held}. Every token adds its keys and values, in pages of 64, as in any softmax model.`;
    const other = `A softmax model of this shape would hold ${bytes(full)}`;
    if (growing) return `${held}. ${other}.`;
    const from = Math.ceil(size / softmax);
    return `${held}, and it stays so. ${other}${tokens < from ? ` by now, and more than this from ${count(from)} tokens on` : ""}.`;
}

/* `points`: [tokens, bytes] after each answer that is shown. */
export function drawChart(figure, linnet, points) {
    const last = points[points.length - 1];
    const width = roof(Math.max(0, ...points.map(([x]) => x)));
    const own = curve(linnet, width);
    const softmax = Number(linnet.softmax_token_bytes) || 0;
    const ends = own.length > 1 ? [own[0][1], own[own.length - 1][1]] : [0, 0];
    const growing = ends[1] > ends[0] * 1.01;
    const same = growing && Math.abs(softmax * width - ends[1]) < 0.05 * ends[1];
    const height = Math.max(1, softmax * width, ...own.map(([, y]) => y), ...points.map(([, y]) => y));
    const x = (tokens) => BOX.left + ((BOX.right - BOX.left) * tokens) / width;
    const y = (size) => BOX.bottom - ((BOX.bottom - BOX.top) * size) / height;
    const line = (at) => at.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
    const text = (at, up, anchor, say, name) =>
        svg("text", { x: at, y: up, "text-anchor": anchor, class: name }, say);

    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
                                 "aria-label": "State in bytes against tokens of the conversation" },
        svg("line", { class: "axis", x1: BOX.left, x2: BOX.right, y1: BOX.bottom, y2: BOX.bottom }),
        svg("line", { class: "axis", x1: BOX.left, x2: BOX.right, y1: BOX.top, y2: BOX.top }),
        text(BOX.left, BOX.bottom + 16, "start", "0", "tick"),
        text(BOX.right, BOX.bottom + 16, "end", `${count(width)} tokens`, "tick"),
        text(BOX.left, 12, "start", bytes(height), "tick"));
    if (softmax && !same) {
        picture.append(svg("polyline", { class: "softmax", points: line([[0, 0], [width, softmax * width]]) }),
                       text(BOX.right, 12, "end", "softmax of this shape", "tick"));
    }
    if (own.length > 1) picture.append(svg("polyline", { class: "own", points: line(own) }));
    if (points.length > 1) picture.append(svg("polyline", { class: "turns", points: line(points) }));
    for (const [tokens, size] of points)
        picture.append(svg("circle", { class: "turn", cx: x(tokens), cy: y(size), r: 3.5 },
                           svg("title", null, `${count(tokens)} tokens: ${bytes(size)}`)));
    figure.replaceChildren(picture, h("figcaption", null, caption(last, softmax, growing)));
}

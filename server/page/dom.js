/* Nodes and numbers. Text reaches the page as text nodes only. */

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
        if (value === undefined || value === null || value === false) continue;
        if (typeof value === "function") node.addEventListener(name, value);
        else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
}

/* An element; an attribute that is a function is a listener for the event of its name. */
export const h = (tag, attributes, ...children) =>
    build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) =>
    build(document.createElementNS(SVG, tag), attributes, children);
export const by = (id) => document.getElementById(id);

/* Not crypto.randomUUID: it exists on https and localhost alone. */
export function randomId() {
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = (n) => whole.format(n);
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

function three(x) {
    return x >= 100 || Number.isInteger(x) ? whole.format(x) : String(Number(x.toPrecision(3)));
}
export function bytes(n) {
    const units = ["bytes", "kB", "MB", "GB", "TB"];
    let i = 0;
    while (n >= 999.5 && i < units.length - 1) {
        n /= 1000;
        i++;
    }
    return `${three(n)} ${units[i]}`;
}
export const rate = (n) => (n >= 1000 ? whole.format(n) : three(n));
export function seconds(s) {
    if (s < 0.9995) return `${three(Math.round(s * 1e4) / 10)} ms`;
    return s < 60 ? `${three(s)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

export async function copyText(text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        /* Without https there is no clipboard object. */
        const area = h("textarea", { class: "hidden", "aria-hidden": "true" });
        area.value = text;
        const focused = document.activeElement;
        document.body.append(area);
        area.select();
        const done = document.execCommand("copy");
        area.remove();
        focused?.focus();
        if (!done) throw new Error("this browser does not let the page copy");
    }
}

/* A button that copies what `text()` gives and says so for a moment. */
export function copyButton(text, attributes) {
    const button = h("button", { type: "button", class: "quiet", ...attributes }, "Copy");
    button.addEventListener("click", async () => {
        try {
            await copyText(text());
            button.textContent = "Copied";
        } catch {
            button.textContent = "Cannot copy";
        }
        setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    return button;
}

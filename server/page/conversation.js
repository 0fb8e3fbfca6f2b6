/* A conversation is a tree of messages: an edited message or another answer is a sibling, and each
 * node remembers which of its children is shown. Conversations are kept in localStorage, an entry
 * each, so that two tabs do not overwrite each other's. */
import { randomId } from "./dom.js";

const PREFIX = "linnet.conversation.";
const ROOT = "root";
const TITLE = 60;

export function create(system = "") {
    const now = Date.now();
    const root = { id: ROOT, parent: null, role: ROOT, content: "", children: [], pick: 0 };
    return { version: 1, id: randomId(), title: "", system, created: now, updated: now,
             nodes: { [ROOT]: root } };
}

/* A new last child of `parent` (null: the first message), and the one shown. */
export function add(c, parent, role, content) {
    const above = c.nodes[parent ?? ROOT];
    const node = { id: randomId(), parent: above.id, role, content, children: [], pick: 0 };
    c.nodes[node.id] = node;
    above.pick = above.children.push(node.id) - 1;
    c.updated = Date.now();
    if (!c.title && role === "user") c.title = titleOf(content);
    return node;
}

export function titleOf(text) {
    const line = text.trim().split("\n", 1)[0];
    const cut = Array.from(line).slice(0, TITLE + 1);
    if (cut.length <= TITLE) return line;
    const head = cut.slice(0, TITLE - 1).join("");
    return `${head.slice(0, Math.max(head.lastIndexOf(" "), TITLE / 2)).trimEnd()}…`;
}

/* The messages that are shown, from the first. */
export function path(c) {
    const out = [];
    for (let node = c.nodes[ROOT]; node.children.length;) {
        node = c.nodes[node.children[node.pick]];
        out.push(node);
    }
    return out;
}

/* Those from the first to `id`, whichever are shown. */
function above(c, id) {
    const out = [];
    for (let node = c.nodes[id]; node.role !== ROOT; node = c.nodes[node.parent]) out.unshift(node);
    return out;
}

/* What the model is told when the message `id` is to be answered. Answers without a text count as
 * none, and templates want users and answers to alternate, so the messages around one are joined. */
export function prompt(c, id) {
    const out = c.system.trim() ? [{ role: "system", content: c.system }] : [];
    for (const { role, content } of above(c, id)) {
        const last = out[out.length - 1];
        if (role === "assistant" && !content) continue;
        if (last?.role === role) last.content += `\n\n${content}`;
        else out.push({ role, content });
    }
    return out;
}

/* Which of how many, counted from 0. */
export function place(c, node) {
    const { children } = c.nodes[node.parent];
    return { index: children.indexOf(node.id), of: children.length };
}

/* Shows the sibling `step` places on and returns it, or undefined. */
export function turnTo(c, node, step) {
    const parent = c.nodes[node.parent];
    const index = parent.children.indexOf(node.id) + step;
    if (!parent.children[index]) return undefined;
    parent.pick = index;
    return c.nodes[parent.children[index]];
}

/* Takes away a message that nothing follows. */
export function drop(c, node) {
    const parent = c.nodes[node.parent];
    parent.children = parent.children.filter((id) => id !== node.id);
    parent.pick = Math.max(0, parent.children.length - 1);
    delete c.nodes[node.id];
}

/* A copy under an id of its own: of everything, or of the messages down to `id` alone. */
export function fork(c, id) {
    const copy = structuredClone(c);
    copy.id = randomId();
    copy.title = `${c.title || "Untitled"} (fork)`;
    copy.created = copy.updated = Date.now();
    if (id) {
        const kept = above(copy, id);
        copy.nodes = { [ROOT]: copy.nodes[ROOT] };
        let parent = copy.nodes[ROOT];
        for (const node of kept) {
            copy.nodes[node.id] = node;
            parent.children = [node.id];
            parent.pick = 0;
            parent = node;
        }
        parent.children = [];
        parent.pick = 0;
    }
    for (const node of Object.values(copy.nodes)) delete node.running;
    return copy;
}

/* ---- storage ------------------------------------------------------------------------------- */

/* What an entry holds, or null if it is none of ours. Anything may have written to the storage, so
 * a tree that is not one is refused. */
function read(text) {
    try {
        const c = JSON.parse(text);
        if (c.version !== 1 || typeof c.id !== "string" || typeof c.system !== "string") return null;
        const seen = new Set();
        const visit = [ROOT];
        while (visit.length) {
            const id = visit.pop();
            const node = c.nodes[id];
            if (seen.has(id) || node.id !== id || typeof node.content !== "string") return null;
            seen.add(id);
            for (const child of node.children) if (c.nodes[child].parent !== id) return null;
            if (node.children.length && !node.children[node.pick]) return null;
            visit.push(...node.children);
        }
        if (seen.size !== Object.keys(c.nodes).length) return null;
        for (const node of Object.values(c.nodes)) {
            if (node.running) node.stats = { ...node.stats, end: "broken" };
            delete node.running;
        }
        c.title = String(c.title);
        c.updated = Number(c.updated) || 0;
        return c;
    } catch {
        return null;
    }
}

/* All conversations by id. Throws where the browser gives the page no storage. */
export function loadAll() {
    const out = new Map();
    for (let i = 0; i < localStorage.length; i++) {
        const name = localStorage.key(i);
        if (!name.startsWith(PREFIX)) continue;
        const c = read(localStorage.getItem(name));
        if (c && PREFIX + c.id === name) out.set(c.id, c);
    }
    return out;
}
/* The id and conversation that another tab changed (`changed` null: removed), or null. */
export function fromEvent(event) {
    if (!event.key?.startsWith(PREFIX)) return null;
    return { id: event.key.slice(PREFIX.length), changed: event.newValue && read(event.newValue) };
}
/* Throws when the storage is full or closed. */
export const save = (c) => localStorage.setItem(PREFIX + c.id, JSON.stringify(c));
export const remove = (c) => localStorage.removeItem(PREFIX + c.id);

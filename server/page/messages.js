/* The messages of a conversation on the page. What its buttons do is app.js's: `act` has a function
 * for each. */
import { bytes, copyButton, count, h, plural, rate, seconds } from "./dom.js";
import { Rendering } from "./markdown.js";
import { path, place } from "./conversation.js";

const ENDS = { length: "cut", stopped: "stopped", broken: "broken off" }; /* of which a line is told */

function button(node, name, label, click, attributes) {
    return h("button", { type: "button", class: "quiet", "data-key": `${node.id} ${name}`,
                         click, ...attributes }, label);
}

/* ‹ 2/3 › where a message has siblings. */
function turner(c, node, act) {
    const { index, of } = place(c, node);
    if (of < 2) return null;
    const what = node.role === "user" ? "version" : "answer";
    const arrow = (name, label, say, step, ends) =>
        button(node, name, label, () => !ends && act.turn(node, step, name),
               { "aria-label": `${say} ${what}`, "aria-disabled": ends ? "true" : null });
    return h("span", { class: "turner", role: "group", "aria-label": `${what} ${index + 1} of ${of}` },
             arrow("previous", "‹", "Previous", -1, index === 0),
             h("span", { class: "count", "aria-hidden": "true" }, `${index + 1}/${of}`),
             arrow("next", "›", "Next", 1, index === of - 1));
}

/* What an answer cost: a line, and the rest behind it. */
function figures(node) {
    const s = node.stats ?? {};
    const line = [];
    if (s.tokens) line.push(plural(s.tokens, "token"));
    if (s.rate) line.push(`${rate(s.rate)} tok/s`);
    if (s.first !== undefined) line.push(`first after ${seconds(s.first)}`);
    if (s.prompt !== undefined) line.push(`${count(s.cached ?? 0)} of ${count(s.prompt)} reused`);
    if (s.state !== undefined) line.push(`state ${bytes(s.state)}`);
    if (ENDS[s.end]) line.push(ENDS[s.end]);
    const rows = [];
    const row = (name, value) => value !== undefined && value !== "" && rows.push(h("dt", null, name), h("dd", null, value));
    row("Reuse", s.reuse);
    row("Waited", s.queue > 0.001 ? seconds(s.queue) : undefined);
    row("Prompt read in", s.prefill > 0 ? seconds(s.prefill) : undefined);
    row("Seed", s.seed === undefined ? undefined : String(s.seed));
    row("End", s.end === "length" ? "at the most tokens asked for, or the context is full" : undefined);
    row("Model", s.model);
    return h("details", { class: "figures" },
             h("summary", null, line.join(" · ") || "no figures"), h("dl", null, ...rows));
}

/* A button of what cannot be done while an answer is written. */
const idle = { "data-idle": true };

function userMessage(c, node, act) {
    return h("article", { class: "user", "data-id": node.id, "aria-label": "You" },
             h("div", { class: "text" }, node.content),
             h("div", { class: "tools" }, turner(c, node, act),
               button(node, "edit", "Edit", () => act.edit(node), idle),
               copyButton(() => node.content, { "data-key": `${node.id} copy` })));
}

function answerMessage(c, node, act) {
    const text = h("div", { class: "text" });
    const rendering = new Rendering(text);
    if (node.content) rendering.update(node.content, !node.running);
    const out = h("article", { class: "answer", "data-id": node.id, "aria-label": "Answer",
                               "aria-busy": node.running ? "true" : null }, text,
                  h("div", { class: "progress", hidden: !node.running },
                    h("progress", { "aria-label": "Reading the prompt", max: "1" }), h("span", null, "")));
    out.rendering = rendering;
    if (node.running) return out;
    if (node.error) {
        out.append(h("div", { class: "error" }, h("p", null, node.error.text),
            button(node, "again", "Try again", () => act.again(node), { ...idle, class: "" }),
            node.error.status === 401 ? button(node, "key", "Enter the key", act.key, { class: "" }) : null));
    } else if (!node.content) {
        out.append(h("p", { class: "small" }, node.stats?.end === "stopped" ? "Stopped before the first word." : "An empty answer."));
    }
    const again = node.error ? null : button(node, "again", "Another answer", () => act.again(node), idle);
    out.append(h("div", { class: "tools" }, turner(c, node, act), again));
    if (!node.content) return out;
    out.lastChild.append(button(node, "fork", "Fork from here", () => act.fork(node)),
                         copyButton(() => node.content, { "data-key": `${node.id} copy` }));
    out.append(figures(node));
    return out;
}

const article = (c, node, act) => (node.role === "user" ? userMessage : answerMessage)(c, node, act);

/* An article for every message that is shown. */
export function drawMessages(root, c, act) {
    root.replaceChildren(...path(c).map((node) => article(c, node, act)));
}
export function redrawMessage(root, c, node, act) {
    articleOf(root, node)?.replaceWith(article(c, node, act));
}
/* Busy: an answer of this conversation is being written. The buttons stay where Tab finds them. */
export function drawBusy(root, busy) {
    for (const each of root.querySelectorAll("[data-idle]")) each.setAttribute("aria-disabled", String(busy));
}
export const articleOf = (root, node) => root.querySelector(`[data-id="${node.id}"]`);

/* Where an answer that is being written stands; returns the text of blocks that became final. */
export function drawGrowth(shown, node, state) {
    const [bar, label] = shown.querySelector(".progress").children;
    bar.hidden = !state.total;
    if (state.total) {
        bar.max = state.total;
        bar.value = state.processed;
    }
    label.textContent = state.label;
    return shown.rendering.update(node.content, state.done);
}

/* An edit in the place of a message: a textarea, Send, Cancel. */
export function drawEditor(shown, node, send, close) {
    const area = h("textarea", { "aria-label": "Edit the message", rows: "3" });
    area.value = node.content;
    const submit = () => area.value.trim() && send(area.value);
    const form = h("form", { class: "editor", submit: (event) => (event.preventDefault(), submit()) }, area,
        h("div", { class: "tools" }, h("button", { type: "submit" }, "Send"),
          h("button", { type: "button", class: "quiet", click: close }, "Cancel"),
          h("span", { class: "small" }, "The first version stays, behind the arrows.")));
    area.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            submit();
        } else if (event.key === "Escape") {
            event.stopPropagation();
            close();
        }
    });
    shown.replaceChildren(form);
    area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight / 2)}px`;
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
}

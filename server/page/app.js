/* The page: which conversation is shown, what its buttons do, and the answers that are being
 * written, one of each conversation at most. */
import { ApiError, chat, model as askModel } from "./api.js";
import * as tree from "./conversation.js";
import { drawChart } from "./chart.js";
import { by, h, plural } from "./dom.js";
import { listenDrawers, setDrawer, uncover } from "./drawers.js";
import { articleOf, drawBusy, drawEditor, drawGrowth, drawMessages, redrawMessage } from "./messages.js";
import { Run } from "./run.js";
import { apiKey, loadSettings, sampling, wrongField } from "./settings.js";

const SAVE_EVERY = 2000, DRAW_EVERY = 40; /* milliseconds, of an answer that is being written */
const UNLIMITED = 2 ** 28; /* the context of a model without growing state */
const EXAMPLES = ["Give me three tips for sleeping well.", "Write four lines about a small brown bird.",
                  "What is the difference between a list and a set?"];

let all = new Map();     /* conversations by id */
let shown;               /* the one on the page; in `all` once it has a message */
let served = null;       /* {id, linnet} of the model */
const running = new Map(); /* a Run by its conversation's id */
const input = by("input"), messages = by("messages"), scroller = by("scroll");

/* ---- small parts --------------------------------------------------------------------------- */

/* A sentence above the conversation; `action`: [label, function]. */
function notice(text, action) {
    const parts = [h("p", null, text)];
    const close = () => by("notice").replaceChildren();
    if (action) parts.push(h("button", { type: "button", click: () => (close(), action[1]()) }, action[0]));
    parts.push(h("button", { type: "button", class: "quiet", click: close }, "Close"));
    by("notice").replaceChildren(...parts);
}

/* For who listens: whole blocks, so that no word is cut. */
function announce(texts) {
    const live = by("live");
    for (const text of texts) live.append(h("p", null, text));
    while (live.children.length > 8) live.firstChild.remove();
}

function keep(c) {
    if (!all.has(c.id)) return;
    try {
        tree.save(c);
    } catch {
        notice("This browser has no room left for conversations, so what is new will be lost with " +
               "this tab. Deleting a conversation makes room.");
    }
}

/* Where a keyboard would cover half of the page, only who touches the field gets it. */
const focusInput = () => matchMedia("(pointer: fine)").matches && input.focus();
const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
const toEnd = () => (scroller.scrollTop = scroller.scrollHeight);

function grow(area) {
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight * 0.4)}px`;
}

/* ---- drawing ------------------------------------------------------------------------------- */

function drawList() {
    const sorted = [...all.values()].sort((a, b) => b.updated - a.updated);
    by("list").replaceChildren(...sorted.map(listItem));
}

function listItem(c) {
    const current = c.id === shown.id;
    const link = h("a", { href: `#${c.id}`, "aria-current": current ? "page" : null }, c.title || "Untitled",
                   running.has(c.id) ? h("span", { class: "writing" }, " writing") : null);
    const item = h("li", null, link);
    if (!current) return item;
    const tool = (name, act) => h("button", { type: "button", class: "quiet", "data-key": `list ${name}`, click: act }, name);
    item.append(h("div", { class: "tools" }, tool("Rename", () => rename(c, item)),
                  tool("Fork", () => adopt(tree.fork(c))), tool("Delete", () => erase(c))));
    return item;
}

function drawHeading() {
    by("title").textContent = shown.title || "New conversation";
    document.title = shown.title ? `${shown.title} · linnet` : "linnet";
}

function drawModel() {
    if (!served) {
        by("model").textContent = "";
        return;
    }
    const mixers = served.linnet.mixers ?? [], kinds = [...new Set(mixers)];
    const layers = kinds.length === 1 ? `${mixers.length} ${kinds[0]} layers`
        : kinds.map((kind) => `${mixers.filter((m) => m === kind).length} ${kind}`).join(" + ");
    by("model").textContent = kinds.length ? `${served.id} · ${layers}` : served.id;
}

const statePoints = () => tree.path(shown)
    .filter((node) => node.stats?.state !== undefined && node.stats.held)
    .map((node) => [node.stats.held, node.stats.state]);

function drawState() {
    drawChart(by("chart"), served?.linnet ?? {}, statePoints());
}

function drawEmpty() {
    const context = served?.linnet.context;
    messages.replaceChildren(h("div", { class: "empty" },
        h("p", { class: "lead" }, "A conversation with a model that runs on your own machine."),
        context ? h("p", { class: "small" }, context < UNLIMITED
            ? `Its context has room for ${plural(context, "token")}.`
            : "Its state does not grow, so a conversation may be of any length.") : null,
        h("ul", null, ...EXAMPLES.map((text) =>
            h("li", null, h("button", { type: "button", class: "quiet", click: () => send(text) }, text))))));
}

/* Draws anew without taking the focus from the button that had it. */
function keepFocus(drawing) {
    const key = document.activeElement?.dataset?.key;
    drawing();
    if (key) document.querySelector(`[data-key="${key}"]`)?.focus();
}

function draw() {
    keepFocus(drawAll);
}
function drawAll() {
    drawList();
    drawHeading();
    if (tree.path(shown).length) drawMessages(messages, shown, act);
    else drawEmpty();
    drawState();
    drawRun();
    if (running.has(shown.id)) drawRunning(running.get(shown.id), false);
    by("system").value = shown.system;
}

function drawRun() {
    const run = running.get(shown.id);
    by("send").textContent = run ? "Stop" : "Send";
    by("composer").classList.toggle("busy", Boolean(run));
    drawBusy(messages, Boolean(run));
}

/* ---- an answer ----------------------------------------------------------------------------- */

/* Draws what came, at a pace that leaves the browser time for everything else. */
function drawSoon(c, run) {
    if (run.timer) return;
    run.timer = setTimeout(() => {
        const before = performance.now();
        run.timer = 0;
        if (shown === c) drawRunning(run, false);
        run.pace = Math.max(DRAW_EVERY, 3 * (performance.now() - before));
        if (Date.now() - run.saved > SAVE_EVERY) {
            run.saved = Date.now();
            keep(c);
        }
    }, run.pace);
}
function drawRunning(run, done) {
    const article = articleOf(messages, run.node);
    if (!article) return; /* another branch is shown */
    const follow = atEnd();
    announce(drawGrowth(article, run.node, { total: run.first ? 0 : run.total, processed: run.processed,
                                             label: run.label, done }));
    if (follow) toEnd();
}

function finish(c, run, error) {
    const { node } = run;
    run.end(error);
    running.delete(c.id);
    c.updated = Date.now();
    keep(c);
    drawList();
    if (shown !== c) return;
    const follow = atEnd();
    drawRunning(run, true);
    if (error) announce([node.error?.text ?? "Stopped."]);
    keepFocus(() => redrawMessage(messages, c, node, act));
    drawState();
    drawRun();
    if (follow) toEnd();
}

/* Has the message `user` answered. */
async function answer(c, user) {
    const fields = sampling();
    const run = new Run(tree.add(c, user.id, "assistant", ""));
    run.node.stats.seed = fields.seed;
    running.set(c.id, run);
    keep(c);
    draw();
    toEnd();
    announce(["Answering."]);
    let error = null;
    try {
        if (!served) await learnModel();
        run.linnet = served.linnet;
        run.node.stats.model = served.id;
        const body = { model: served.id, messages: tree.prompt(c, user.id), ...fields };
        for await (const chunk of chat(body, apiKey(), run.control.signal)) {
            run.take(chunk);
            drawSoon(c, run);
        }
    } catch (thrown) {
        error = thrown;
        if (thrown.status === 0 || thrown.status === 404) served = null; /* another server may answer next */
        if (!(thrown instanceof ApiError) && thrown.name !== "AbortError") console.error(thrown);
    }
    finish(c, run, error);
}

/* True if the settings are such that the server would refuse them; then shows where. */
function wrongSetting() {
    const field = wrongField();
    if (!field) return false;
    setDrawer("panel", true);
    field.focus();
    field.reportValidity();
    return true;
}

function send(text) {
    const c = shown;
    if (running.has(c.id) || !text.trim() || wrongSetting()) return false;
    all.set(c.id, c);
    const path = tree.path(c);
    const user = tree.add(c, path[path.length - 1]?.id ?? null, "user", text);
    history.replaceState(null, "", `#${c.id}`);
    answer(c, user);
    return true;
}

function stop() {
    running.get(shown.id)?.control.abort();
}

/* ---- what the buttons do ------------------------------------------------------------------- */

const act = {
    turn(node, step, name) {
        const other = tree.turnTo(shown, node, step);
        if (!other) return;
        keep(shown);
        draw();
        document.querySelector(`[data-key="${other.id} ${name}"]`)?.focus();
    },
    edit(node) {
        if (running.has(shown.id)) return;
        const c = shown;
        drawEditor(articleOf(messages, node), node, (text) => {
            if (running.has(c.id) || wrongSetting()) return;
            answer(c, tree.add(c, node.parent === "root" ? null : node.parent, "user", text));
            input.focus();
        }, () => {
            redrawMessage(messages, c, node, act);
            input.focus();
        });
    },
    again(node) {
        if (running.has(shown.id) || wrongSetting()) return;
        const user = shown.nodes[node.parent];
        /* What failed before its first word is not worth an arrow. */
        if (node.error && !node.content && !node.children.length) tree.drop(shown, node);
        answer(shown, user);
    },
    fork(node) {
        adopt(tree.fork(shown, node.id));
    },
    key() {
        setDrawer("panel", true);
        by("key").focus();
    },
};

/* A conversation that is new in the list, and the one shown. */
function adopt(c) {
    all.set(c.id, c);
    keep(c);
    show(c);
    focusInput();
}

function erase(c) {
    running.get(c.id)?.control.abort();
    all.delete(c.id);
    tree.remove(c);
    if (shown === c) show(tree.create(c.system));
    else drawList();
    notice(`“${c.title || "Untitled"}” is deleted.`, ["Undo", () => adopt(c)]);
    by("new").focus();
}

function rename(c, item) {
    const field = h("input", { "aria-label": "Name of the conversation", maxlength: "200" });
    field.value = c.title;
    let over = false;
    const end = (take) => {
        if (over) return;
        over = true;
        if (take && field.value.trim()) {
            c.title = field.value.trim();
            keep(c);
        }
        drawList();
        drawHeading();
        document.querySelector('[data-key="list Rename"]')?.focus();
    };
    field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== "Escape") return;
        event.preventDefault(); /* else the button that gets the focus is pressed by the same key */
        end(event.key === "Enter");
    });
    field.addEventListener("blur", () => end(true));
    item.replaceChildren(field);
    field.focus();
    field.select();
}

function show(c) {
    shown = c;
    if (all.has(c.id)) history.replaceState(null, "", `#${c.id}`);
    else history.replaceState(null, "", location.pathname + location.search);
    draw();
    toEnd();
    uncover();
}

/* ---- start --------------------------------------------------------------------------------- */

async function learnModel() {
    served = await askModel(apiKey());
    by("notice").replaceChildren();
    drawModel();
    drawState();
    if (!tree.path(shown).length) drawEmpty();
}

async function refreshModel() {
    try {
        await learnModel();
    } catch (error) {
        notice(error.message, error.status === 401 ? ["Enter the key", act.key] : ["Try again", refreshModel]);
    }
}

function listen() {
    by("composer").addEventListener("submit", (event) => {
        event.preventDefault();
        if (running.has(shown.id)) {
            stop();
        } else if (input.value.trim()) {
            if (!send(input.value)) return;
            input.value = "";
            grow(input);
        }
    });
    input.addEventListener("input", () => grow(input));
    input.addEventListener("keydown", (event) => {
        if (event.isComposing) return;
        if (event.key === "Enter" && !event.shiftKey) {
            event.preventDefault();
            if (!running.has(shown.id)) by("composer").requestSubmit();
        } else if (event.key === "ArrowUp" && !input.value) {
            const last = tree.path(shown).findLast((node) => node.role === "user");
            if (!last) return;
            event.preventDefault();
            act.edit(last);
        }
    });
    document.addEventListener("keydown", (event) => {
        if (event.key === "Escape" && !event.defaultPrevented && !uncover()) stop();
    });
    scroller.addEventListener("scroll", () => (by("latest").hidden = atEnd()), { passive: true });
    by("latest").addEventListener("click", () => {
        toEnd();
        input.focus();
    });
    by("new").addEventListener("click", () => {
        show(tree.create(shown.system));
        focusInput();
    });
    by("system").addEventListener("input", () => {
        shown.system = by("system").value;
        keep(shown);
    });
    by("key").addEventListener("change", refreshModel);
    by("list").addEventListener("click", (event) => event.target.closest("[aria-current]") && uncover());
    addEventListener("hashchange", () => {
        const c = all.get(location.hash.slice(1));
        if (c && c !== shown) show(c);
    });
    addEventListener("storage", (event) => {
        const told = tree.fromEvent(event);
        if (!told || running.has(told.id)) return;
        if (told.changed) all.set(told.id, told.changed);
        else all.delete(told.id);
        if (shown.id === told.id && told.changed) shown = told.changed;
        if (shown.id === told.id) draw();
        else drawList();
    });
    addEventListener("pagehide", () => running.forEach((run, id) => all.has(id) && keep(all.get(id))));
    listenDrawers();
}

function start() {
    loadSettings();
    try {
        all = tree.loadAll();
    } catch {
        notice("This browser gives the page no storage: conversations will be gone with this tab.");
    }
    shown = all.get(location.hash.slice(1)) ?? tree.create();
    listen();
    draw();
    toEnd();
    focusInput();
    refreshModel();
}
start();

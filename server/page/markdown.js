/* A small subset of Markdown: paragraphs, headings, lists, quotes, rules, code blocks; code, bold,
 * italic and struck text within. Builds nodes with textContent alone, so whatever a model writes
 * stays text; links and pictures are shown as they are written, since a page that a model can make
 * fetch something is a page that leaks. */
import { copyButton, h } from "./dom.js";

const FENCE = /^( *)(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DEEPEST = 6; /* of what nests: a hostile text must not nest as deep as it likes */

const indentOf = (line) => line.length - line.trimStart().length;
const startsBlock = (line) =>
    FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
const kindOf = (marker) => (/\d/.test(marker) ? "ol" : "ul");

/* ---- blocks -------------------------------------------------------------------------------- */

class Lines {
    constructor(text) {
        this.all = text.split("\n");
        this.i = 0;
        this.at = 0; /* offset of line i */
    }
    get left() {
        return this.i < this.all.length;
    }
    get line() {
        return this.all[this.i];
    }
    next() {
        this.at += this.line.length + 1;
        return this.all[this.i++];
    }
    /* The first line from here on that is not blank, or undefined. */
    ahead() {
        return this.all.slice(this.i, this.i + 50).find((line) => line.trim());
    }
}

function readCode(lines) {
    const [, space, fence, language] = FENCE.exec(lines.next());
    const end = new RegExp(`^ *${fence[0]}{${fence.length},}[ \\t]*$`);
    const body = [];
    while (lines.left) {
        const line = lines.next();
        if (end.test(line)) break;
        body.push(line.slice(Math.min(indentOf(line), space.length)));
    }
    return { kind: "code", language, text: body.join("\n") };
}

function readQuote(lines) {
    const body = [];
    while (lines.left && QUOTE.test(lines.line)) body.push(lines.next().replace(QUOTE, ""));
    return { kind: "blockquote", text: body.join("\n") };
}

function readList(lines) {
    const [, space, first] = ITEM.exec(lines.line);
    const base = space.length, kind = kindOf(first), items = [];
    let inner = base + 2; /* where the text of the item begins */
    while (lines.left) {
        const line = lines.line, item = ITEM.exec(line), indent = indentOf(line);
        if (!line.trim()) {
            const ahead = lines.ahead();
            const follows = ahead && ITEM.exec(ahead);
            const goesOn = ahead && (indentOf(ahead) >= base + 2 ||
                (follows && kindOf(follows[2]) === kind && !RULE.test(ahead)));
            if (ahead && !goesOn) break;
            items[items.length - 1].push(lines.next());
        } else if (item && indent < base + 2 && !RULE.test(line)) {
            if (kindOf(item[2]) !== kind) break;
            const gap = item[3].length > 4 ? 1 : item[3].length || 1;
            inner = indent + item[2].length + gap;
            items.push([line.slice(Math.min(inner, item[0].length))]);
            lines.next();
        } else if (indent >= base + 2) {
            items[items.length - 1].push(line.slice(Math.min(indent, inner)));
            lines.next();
        } else if (!lines.all[lines.i - 1].trim() || startsBlock(line)) {
            break;
        } else {
            items[items.length - 1].push(lines.next());
        }
    }
    return { kind, start: parseInt(first, 10) || 0, items: items.map((body) => body.join("\n")) };
}

function readParagraph(lines) {
    const body = [lines.next()];
    while (lines.left && lines.line.trim() && !startsBlock(lines.line)) {
        const item = ITEM.exec(lines.line);
        if (item && lines.line.trim() !== item[2] && !/^(?!1\D)\d/.test(item[2])) break;
        body.push(lines.next());
    }
    return { kind: "p", text: body.join("\n") };
}

/* Blocks of a text, each with the offset where it begins. */
function parse(text) {
    const lines = new Lines(text), out = [];
    while (lines.left) {
        const { line, at } = lines;
        let match, block;
        if (!line.trim()) {
            lines.next();
            continue;
        } else if (FENCE.test(line)) {
            block = readCode(lines);
        } else if ((match = HEADING.exec(line))) {
            lines.next();
            const level = Math.min(6, match[1].length + 2); /* below the page's own headings */
            block = { kind: `h${level}`, text: match[2].trimEnd().replace(/\s#+$/, "") };
        } else if (RULE.test(line)) {
            lines.next();
            block = { kind: "hr" };
        } else if (QUOTE.test(line)) {
            block = readQuote(lines);
        } else if (ITEM.test(line)) {
            block = readList(lines);
        } else {
            block = readParagraph(lines);
        }
        block.at = at;
        out.push(block);
    }
    return out;
}

function codeBlock({ language, text }) {
    const code = h("code", null, text);
    return h("div", { class: "code" },
             h("div", { class: "code-head" }, h("span", null, language),
               copyButton(() => code.textContent, { "aria-label": "Copy this code" })),
             h("pre", { tabindex: "0" }, code));
}

function build(block, depth) {
    if (block.kind === "code") return codeBlock(block);
    if (block.kind === "hr") return h("hr");
    if (block.kind === "blockquote") return within(h("blockquote"), block.text, depth + 1);
    if (block.items) {
        const list = h(block.kind, block.kind === "ol" && block.start !== 1 ? { start: block.start } : null);
        for (const text of block.items) list.append(within(h("li"), text, depth + 1));
        return list;
    }
    const node = h(block.kind);
    inline(block.text, node, 0);
    return node;
}

function within(parent, text, depth) {
    const blocks = depth < DEEPEST ? parse(text) : [{ kind: "p", text }];
    const tight = parent.tagName === "LI" && !/\n[ \t]*\n(?=\S)/.test(text);
    for (const block of blocks) {
        if (tight && block.kind === "p") inline(block.text, parent, 0);
        else parent.append(build(block, depth));
    }
    return parent;
}

/* ---- text within a block ------------------------------------------------------------------- */

const isSpace = (c) => c === undefined || /\s/.test(c);
const isWord = (c) => c !== undefined && /[\p{L}\p{N}_]/u.test(c);

function runAt(text, i) {
    let n = 1;
    while (text[i + n] === text[i]) n++;
    return n;
}

/* Where the run that closes `mark` begins, searching from `from`; -1: nowhere. */
function closing(text, mark, from) {
    const c = mark[0];
    for (let i = text.indexOf(c, from); i >= 0; i = text.indexOf(c, i)) {
        const n = runAt(text, i);
        if (c === "`" ? n === mark.length
                      : n >= mark.length && (mark.length === 2 || n % 2) && !isSpace(text[i - 1]) &&
                        text[i - 1] !== "\\" && !(c === "_" && isWord(text[i + n])))
            return c === "`" ? i : i + n - mark.length;
        i += n;
    }
    return -1;
}

function inline(text, parent, depth) {
    const special = /[\\`*_~]/g;
    const missing = new Set(); /* marks that nothing closes from here on: keeps this linear */
    let plain = "", i = 0;
    const wrap = (node) => {
        if (plain) parent.append(plain);
        plain = "";
        parent.append(node);
        return node;
    };
    while (i < text.length) {
        special.lastIndex = i;
        const found = special.exec(text);
        const at = found ? found.index : text.length;
        plain += text.slice(i, at);
        i = at;
        if (!found) break;
        const c = text[i], n = runAt(text, i);
        if (c === "\\") {
            const escaped = /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "");
            plain += escaped ? text[i + 1] : c;
            i += escaped ? 2 : 1;
            continue;
        }
        const mark = c === "`" ? c.repeat(n) : c.repeat(Math.min(n, 2));
        const opens = c === "`" || (depth < DEEPEST && n <= 3 && !isSpace(text[i + n]) &&
                                    !(c === "~" && n !== 2) && !(c === "_" && isWord(text[i - 1])));
        const end = opens && !missing.has(mark) ? closing(text, mark, i + n) : -1;
        if (end < 0) {
            if (opens) missing.add(mark);
            plain += text.slice(i, i + n);
            i += n;
            continue;
        }
        const body = text.slice(i + mark.length, end);
        if (c === "`") {
            const padded = body.length > 2 && body.startsWith(" ") && body.endsWith(" ");
            wrap(h("code", null, padded ? body.slice(1, -1) : body));
        } else {
            const tag = c === "~" ? "del" : mark.length === 2 ? "strong" : "em";
            inline(body, wrap(h(tag)), depth + 1);
        }
        i = end + mark.length;
    }
    if (plain) parent.append(plain);
}

/* ---- a text that grows --------------------------------------------------------------------- */

/* Shows a text in `root`. Of a text that grows only what can still change is built again: the last
 * block, and the one before it while the last is a line without its end, which may yet turn out to
 * go on with a list, say. */
export class Rendering {
    constructor(root) {
        this.root = root;
        this.settled = 0; /* offset of the text up to which blocks are final */
        this.open = [];   /* the blocks after it, with their nodes */
    }
    /* `done`: the text is whole. Returns the text of the blocks that became final. */
    update(text, done) {
        const rest = text.slice(this.settled), blocks = parse(rest);
        blocks.forEach((block, i) => {
            block.source = rest.slice(block.at, blocks[i + 1]?.at);
            block.node = this.show(block, this.open[i]);
        });
        for (const old of this.open.slice(blocks.length)) old.node.remove();
        const still = blocks.at(-1)?.source.includes("\n") ? 1 : 2;
        const final = done ? blocks.length : Math.max(0, blocks.length - still);
        this.open = blocks.slice(final);
        this.settled += done ? rest.length : this.open[0]?.at ?? 0;
        return blocks.slice(0, final).map((block) => block.node.textContent);
    }
    show(block, old) {
        if (old?.source === block.source) return old.node;
        if (old?.kind === "code" && block.kind === "code" && old.language === block.language &&
            block.text.startsWith(old.text)) {
            /* Keeps what a reader has selected, and where it was scrolled to. */
            old.node.querySelector("code").append(block.text.slice(old.text.length));
            return old.node;
        }
        const node = build(block, 0);
        if (old) old.node.replaceWith(node);
        else this.root.append(node);
        return node;
    }
}

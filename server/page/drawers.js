/* The list of conversations and the settings: beside the conversation where there is room for them,
 * else drawers that lie over it, one at a time, with everything behind them inert. */
import { by } from "./dom.js";

const DRAWERS = {
    side: { opener: "side-open", room: matchMedia("(min-width: 52rem)") },
    panel: { opener: "panel-toggle", room: matchMedia("(min-width: 76rem)") },
};
const isOpen = (name) => by(name).classList.contains("open");
const liesOver = (name) => isOpen(name) && !DRAWERS[name].room.matches;

export function setDrawer(name, open) {
    if (open)
        for (const other of Object.keys(DRAWERS))
            if (other !== name && liesOver(other)) setDrawer(other, false);
    by(name).classList.toggle("open", open);
    by(DRAWERS[name].opener).setAttribute("aria-expanded", String(open));
    const covered = Object.keys(DRAWERS).some(liesOver);
    by("main").inert = covered;
    for (const each of Object.keys(DRAWERS)) by(each).inert = covered && !liesOver(each);
    document.body.classList.toggle("covered", covered);
    if (liesOver(name)) by(name).querySelector("button").focus();
}

/* Closes the drawer that lies over the page; false: there is none. */
export function uncover() {
    const name = Object.keys(DRAWERS).find(liesOver);
    if (!name) return false;
    setDrawer(name, false);
    by(DRAWERS[name].opener).focus();
    return true;
}

export function listenDrawers() {
    for (const [name, { opener, room }] of Object.entries(DRAWERS)) {
        by(opener).addEventListener("click", () => setDrawer(name, !isOpen(name)));
        by(`${name}-close`).addEventListener("click", () => uncover() || setDrawer(name, false));
        room.addEventListener("change", () => setDrawer(name, room.matches));
        setDrawer(name, room.matches);
    }
    by("shade").addEventListener("click", uncover);
}

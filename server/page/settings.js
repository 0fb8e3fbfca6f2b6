/* The form of sampling controls: kept in localStorage, the API key in sessionStorage. */
import { by, randomSeed } from "./dom.js";

const STORED = "linnet.settings", KEY = "linnet.key", MAX_STOPS = 4;
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"];
const DEFAULTS = { temperature: "0.7", stop: "" };

const fields = () => [...NUMBERS, "stop"].map((id) => by(id));
const put = (values) => fields().forEach((field) => (field.value = values[field.id] ?? ""));

function get(storage, name) {
    try {
        return storage().getItem(name);
    } catch {
        return null; /* this browser keeps nothing: the form still works */
    }
}
function set(storage, name, value) {
    try {
        storage().setItem(name, value);
    } catch {
        /* as above */
    }
}

export function loadSettings() {
    let values = null;
    try {
        values = JSON.parse(get(() => localStorage, STORED));
    } catch {
        values = null;
    }
    put(values && typeof values === "object" ? values : DEFAULTS);
    by("key").value = get(() => sessionStorage, KEY) ?? "";
    by("settings").addEventListener("submit", (event) => event.preventDefault());
    by("settings").addEventListener("input", check);
    by("defaults").addEventListener("click", () => {
        put(DEFAULTS);
        check();
    });
    check();
}

function check() {
    const stops = stopStrings();
    by("stop").setCustomValidity(stops.length > MAX_STOPS ? `At most ${MAX_STOPS} stop strings.` : "");
    for (const field of fields()) field.setAttribute("aria-invalid", String(!field.validity.valid));
    set(() => localStorage, STORED, JSON.stringify(Object.fromEntries(fields().map((f) => [f.id, f.value]))));
    set(() => sessionStorage, KEY, apiKey());
}

const stopStrings = () => by("stop").value.split("\n").filter((line) => line);
export const apiKey = () => by("key").value.trim();

/* The first field with a value that the server would refuse, or undefined. */
export const wrongField = () => fields().find((field) => !field.validity.valid);

/* The request's fields. A seed of its own for each answer, so that another answer is another. */
export function sampling() {
    const out = {};
    for (const name of NUMBERS) if (by(name).value !== "") out[name] = by(name).valueAsNumber;
    out.seed ??= randomSeed();
    if (stopStrings().length) out.stop = stopStrings();
    return out;
}

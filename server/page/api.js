/* The server's API: the model, and an answer as a stream of server-sent events. Addresses are
 * relative, so the page also works behind a proxy that serves it under a path. */

export class ApiError extends Error {
    /* status: of HTTP; 0: there was no answer, or it broke off. wait: seconds, from Retry-After. */
    constructor(message, status = 0, wait = 0) {
        super(message);
        this.status = status;
        this.wait = wait;
    }
}

function headers(key) {
    const out = { "Content-Type": "application/json" };
    if (key) out.Authorization = `Bearer ${key}`;
    return out;
}

async function request(path, options) {
    let response;
    try {
        response = await fetch(path, { cache: "no-store", ...options });
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The server cannot be reached.");
    }
    if (response.ok) return response;
    let said = "";
    try {
        said = (await response.json()).error.message;
    } catch {
        said = "";
    }
    const wait = Number(response.headers.get("Retry-After")) || 0;
    const after = wait ? ` Try again in ${wait} s.` : "";
    const { status } = response;
    if (status === 401 || status === 403) {
        const why = options.headers.Authorization ? "does not accept this API key" : "wants an API key";
        throw new ApiError(status === 401 ? `The server ${why}.` : said || "The server refused.", status);
    }
    if (status === 429 || status === 503)
        throw new ApiError((said ? `The server is busy: ${sentence(said)}` : "The server is busy.") + after,
                           status, wait);
    throw new ApiError(said ? `The server says: ${sentence(said)}` : `The server answered with status ${status}.`,
                       status);
}
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

/* What /v1/models tells of the one model: {id, linnet}. */
export async function model(apiKey) {
    const response = await request("v1/models", { headers: headers(apiKey) });
    try {
        const first = (await response.json()).data[0];
        return { id: String(first.id), linnet: first.linnet ?? {} };
    } catch {
        throw new ApiError("The server's list of models could not be read.");
    }
}

/* Data of server-sent events as they come. */
export async function* events(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", data = [];
    try {
        for (;;) {
            const { value, done } = await reader.read();
            if (done) return;
            rest += value;
            let from = 0;
            for (let end; (end = rest.indexOf("\n", from)) >= 0; from = end + 1) {
                const line = rest.slice(from, end).replace(/\r$/, "");
                if (line === "" && data.length) {
                    yield data.join("\n");
                    data = [];
                } else if (line.startsWith("data:")) {
                    data.push(line.slice(line[5] === " " ? 6 : 5));
                }
            }
            rest = rest.slice(from);
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}

/* The chunks of an answer. Throws an ApiError, also where the stream breaks off, or an AbortError. */
export async function* chat(body, apiKey, signal) {
    const response = await request("v1/chat/completions", {
        method: "POST",
        headers: headers(apiKey),
        signal,
        body: JSON.stringify({
            ...body,
            stream: true,
            stream_options: { include_usage: true },
            return_progress: true,
        }),
    });
    let whole = false;
    try {
        for await (const data of events(response.body)) {
            if (data === "[DONE]") whole = true;
            if (whole) continue; /* to the end of the stream, so that the connection can be used again */
            const chunk = JSON.parse(data);
            if (chunk.error) throw new ApiError(`The server says: ${sentence(String(chunk.error.message))}`);
            yield chunk;
        }
    } catch (error) {
        if (error instanceof ApiError || error.name === "AbortError") throw error;
        throw new ApiError(error instanceof SyntaxError ? "The server sent something that is no JSON."
                                                        : "The connection to the server broke off.");
    }
    if (!whole) throw new ApiError("The connection to the server broke off.");
}

/* An answer while it is written: what its chunks say, into a message of the conversation. */
import { stateAt } from "./chart.js";
import { bytes, count, plural, rate, seconds } from "./dom.js";

export class Run {
    constructor(node) {
        this.node = node;
        this.linnet = {}; /* of the model, once it is known */
        this.control = new AbortController();
        this.started = performance.now();
        this.first = 0; /* when the first text came */
        this.tokens = 0;
        this.total = this.processed = this.cached = 0; /* of the prompt */
        this.decode = 0;                               /* seconds, once the server told */
        this.timer = this.pace = 0;                    /* of the drawing */
        this.saved = Date.now();
        node.running = true;
        node.stats = {};
    }

    take(chunk) {
        const { node } = this, { stats } = node, choice = chunk.choices?.[0];
        const progress = chunk.prompt_progress, told = chunk.linnet, { usage } = chunk;
        if (progress) {
            this.total = progress.total;
            this.processed = progress.processed;
            this.cached = progress.cached;
        }
        if (choice?.delta?.content) {
            this.first ||= performance.now();
            this.tokens++;
            node.content += choice.delta.content;
        }
        if (choice?.finish_reason) stats.end = choice.finish_reason;
        if (usage) {
            stats.prompt = usage.prompt_tokens;
            stats.tokens = this.tokens = usage.completion_tokens;
            stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
            stats.held = usage.prompt_tokens + usage.completion_tokens;
        }
        if (told) {
            stats.reuse = told.reuse;
            stats.state = told.state_bytes;
            stats.queue = told.queue_seconds;
            stats.prefill = told.prefill_seconds;
            this.decode = told.decode_seconds;
        }
    }

    /* `error`: what ended it, or null. */
    end(error) {
        const { node } = this, { stats } = node;
        clearTimeout(this.timer);
        delete node.running;
        stats.tokens ??= this.tokens;
        if (this.first) {
            stats.first = (this.first - this.started) / 1000;
            const steps = this.decode ? this.tokens : this.tokens - 1;
            const spent = this.decode || (performance.now() - this.first) / 1000;
            if (steps > 0 && spent > 0) stats.rate = steps / spent;
        }
        if (error?.name === "AbortError") {
            stats.end = "stopped";
        } else if (error) {
            stats.end = "broken";
            node.error = { text: error.message, status: error.status ?? 0 };
        }
    }

    get label() {
        if (!this.first) {
            if (!this.total) return "Waiting for the server";
            const reused = this.cached ? `, ${count(this.cached)} reused` : "";
            return `Reading ${count(this.processed)} of ${plural(this.total, "token")}${reused}`;
        }
        const parts = [plural(this.tokens, "token")];
        const spent = (performance.now() - this.first) / 1000;
        if (this.tokens > 1 && spent > 0.2) parts.push(`${rate(Math.round((this.tokens - 1) / spent))} tok/s`);
        parts.push(`first after ${seconds((this.first - this.started) / 1000)}`);
        const state = this.total && stateAt(this.linnet, this.total + this.tokens);
        if (state) parts.push(`state about ${bytes(state)}`);
        return parts.join(" · ");
    }
}

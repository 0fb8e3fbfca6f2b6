/* Conversations by what was said. The lock covers the shelf, the journal and the counters; stores
 * and the model are asked without it. */
#include "conversations_parts.h"
#include "../error.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_ASKED = 16, HEX = 2 * KEY + 1 };

/* ---- Keys ----------------------------------------------------------------------------------- */

static bool is_answer(const linnet_message *m) {
    return !strcmp(m->role, "assistant");
}

/* The key of a conversation from that of its beginning and its last message. */
static void extend_key(const uint8_t before[KEY], const linnet_message *m, uint8_t out[KEY]) {
    static const char blanks[] = " \t\n\v\f\r";
    crypto_generichash_state h;
    const char *text = m->content;
    size_t n = strlen(text);
    if (is_answer(m)) {
        size_t skip = strspn(text, blanks);
        text += skip, n -= skip;
        while (n && strchr(blanks, text[n - 1]))
            n--;
    }
    crypto_generichash_init(&h, NULL, 0, KEY);
    crypto_generichash_update(&h, before, KEY);
    hash_text(&h, m->role, strlen(m->role));
    hash_text(&h, text, n);
    crypto_generichash_final(&h, out, KEY);
}

/* The keys of all beginnings: [i] is that of the first i messages. The caller frees them. */
static uint8_t (*keys_of(const conversations *c, const linnet_message *m, size_t n))[KEY] {
    uint8_t(*keys)[KEY] = n < SIZE_MAX / KEY ? malloc((n + 1) * sizeof *keys) : NULL;
    if (!keys) return NULL;
    memcpy(keys[0], c->seed, KEY);
    for (size_t i = 0; i < n; i++)
        extend_key(keys[i], &m[i], keys[i + 1]);
    return keys;
}

/* ---- What is remembered --------------------------------------------------------------------- */

/* Grows by one with every snapshot that the cache gave up: while it stands still, what the cache
 * was given is there. */
static uint64_t evictions_now(const conversations *c) {
    linnet_cache_stats stats;
    if (!c->options.cache) return UINT64_MAX;
    linnet_cache_get_stats(c->options.cache, &stats);
    return stats.evictions;
}

bool in_cache(const conversations *c, const shelf_entry *e) {
    return c->options.cache && e->evictions != UINT64_MAX && e->evictions == evictions_now(c);
}

/* The cache takes none that is larger than all it may hold, and does not say so. */
static bool fits_cache(const conversations *c, const linnet_session *session) {
    static const uint64_t most = (uint64_t)1 << 30, besides = 1 << 16;
    uint64_t budget = c->options.cache_bytes ? c->options.cache_bytes : most;
    return linnet_session_size(session) + besides < budget;
}

void keep_in_cache(conversations *c, const linnet_session *session, uint64_t *evictions) {
    linnet_error err;
    *evictions = UINT64_MAX;
    if (c->options.cache && fits_cache(c, session) &&
        !linnet_cache_keep(c->options.cache, session, &err))
        *evictions = evictions_now(c);
}

/* A copy of the session's ids onto the shelf and into the journal. */
static void remember(conversations *c, const uint8_t key[KEY], const linnet_session *session,
                     uint64_t evictions) {
    linnet_error err;
    size_t n;
    const int32_t *tokens = linnet_session_tokens(session, &n);
    int32_t *ids = malloc(n ? n * sizeof *ids : 1);
    bool told = false;
    if (ids) memcpy(ids, tokens, n * sizeof *ids);
    pthread_mutex_lock(&c->lock);
    const shelf_entry *before = shelf_find(&c->shelf, key);
    bool same = before && before->n == n && !memcmp(before->ids, tokens, n * sizeof *tokens);
    if (ids && shelf_put(&c->shelf, key, ids, n, NULL, evictions) && c->journal && !same) {
        linnet_status status = journal_add(c->journal, c->shelf.newest, &err);
        told = status && !c->journal_failed;
        c->journal_failed = status;
    }
    pthread_mutex_unlock(&c->lock);
    if (told) conversations_say(c, err.text);
}

/* ---- Prompts -------------------------------------------------------------------------------- */

linnet_status ids_from(const conversations *c, const linnet_message *m, size_t n, size_t from,
                       bool prompt, const id_text *held, id_text *out, linnet_error *err) {
    size_t cap = 512, more = 0, before = held ? held->n : 0;
    *out = (id_text){0};
    for (;;) {
        int32_t *grown = realloc(out->at, (before + cap) * sizeof *grown);
        linnet_status status = LINNET_OK;
        if (!grown) status = fail(err, LINNET_ERR_MEMORY, "no memory for a prompt");
        if (grown) out->at = grown;
        if (!status)
            status = linnet_chat_continue(c->options.model, c->template, m, n, from, prompt,
                                          out->at + before, cap, &more, err);
        if (status) {
            free(out->at);
            *out = (id_text){0};
            return status;
        }
        if (more <= cap) break;
        cap = more;
    }
    if (before) memcpy(out->at, held->at, before * sizeof *out->at);
    out->n = before + more;
    return LINNET_OK;
}

static size_t common_prefix(const id_text *a, const id_text *b) {
    size_t n = 0;
    while (n < a->n && n < b->n && a->at[n] == b->at[n])
        n++;
    return n;
}

/* Where the last user's text begins in `all`: what other texts there have in common with it. */
static size_t mark_of(const conversations *c, const linnet_message *m, size_t n, size_t from,
                      const id_text *held, const id_text *all) {
    static const char *const others[] = {"a", "7"};
    size_t user = n, mark = all->n;
    while (user > 0 && strcmp(m[user - 1].role, "user"))
        user--;
    if (user <= 1) return 0;
    if (user == from + 1) return held->n; /* the turn follows a timeline whose state was kept */
    linnet_message *copy = user > from ? malloc(n * sizeof *copy) : NULL;
    if (!copy) return 0;
    memcpy(copy, m, n * sizeof *copy);
    for (size_t i = 0; i < 2; i++) {
        id_text other;
        linnet_error err;
        copy[user - 1].content = others[i];
        if (ids_from(c, copy, n, from, true, held, &other, &err)) {
            mark = 0;
            break;
        }
        size_t same = common_prefix(all, &other);
        if (same < mark) mark = same;
        free(other.at);
    }
    free(copy);
    return mark;
}

/* The longest beginning that ends in an answer whose ids are known: *known messages of it, *held
 * their ids; *lost: the cache may not have its state. A store is asked for longer ones, and for the
 * state where it may be lost. */
static void find_beginning(conversations *c, uint8_t (*keys)[KEY], const linnet_message *m,
                           size_t n, size_t *known, id_text *held, bool *lost,
                           conversation_prompt *out) {
    bool any = false;
    *known = 0;
    pthread_mutex_lock(&c->lock);
    for (size_t i = n; i > 0 && !*known; i--) {
        if (!is_answer(&m[i - 1])) continue;
        any = true;
        const shelf_entry *e = shelf_find(&c->shelf, keys[i]);
        if (!e || !(held->at = malloc(e->n * sizeof *held->at + 1))) continue;
        memcpy(held->at, e->ids, e->n * sizeof *held->at);
        held->n = e->n;
        *known = i;
        *lost = !in_cache(c, e);
    }
    pthread_mutex_unlock(&c->lock);
    if (!*known) *lost = any;
    char hex[MOST_ASKED][HEX];
    store_key asked[MOST_ASKED];
    size_t of[MOST_ASKED], n_asked = 0, which = 0;
    for (size_t i = n; i > 0 && i >= *known && n_asked < MOST_ASKED; i--) {
        if (!is_answer(&m[i - 1]) || (i == *known && !*lost)) continue;
        sodium_bin2hex(hex[n_asked], HEX, keys[i], KEY);
        asked[n_asked] = (store_key){false, hex[n_asked]};
        of[n_asked++] = i;
    }
    for (size_t s = 0; s < c->n_stores && n_asked && !out->start; s++) {
        if (!c->stores[s].store->hashes) continue;
        out->start = store_get(c, &c->stores[s], asked, n_asked, &which);
        if (!out->start) continue;
        size_t n_tokens;
        const int32_t *tokens = linnet_session_tokens(out->start, &n_tokens);
        int32_t *ids = malloc(n_tokens * sizeof *ids + 1);
        if (!ids) break;
        memcpy(ids, tokens, n_tokens * sizeof *ids);
        free(held->at);
        *held = (id_text){ids, n_tokens};
        *known = of[which];
        out->source = c->stores[s].store->name;
        uint64_t evictions; /* so the next time the store need not be asked */
        keep_in_cache(c, out->start, &evictions);
        remember(c, keys[*known], out->start, evictions);
    }
    pthread_mutex_lock(&c->lock);
    if (any) *(*known ? &c->stats.hits : &c->stats.misses) += 1;
    pthread_mutex_unlock(&c->lock);
}

/* The state under the conversation's name, if it is a beginning of the prompt and the cache may not
 * have it. */
static void start_from_name(conversations *c, const char *name, conversation_prompt *out) {
    bool cached;
    const char *source = "memory";
    linnet_session *session = named_copy(c, name, false, &cached);
    if (!session && !cached) session = stored(c, name, &source);
    if (!session) return;
    id_text all = {out->tokens, out->n}, its = {0};
    its.at = (int32_t *)linnet_session_tokens(session, &its.n);
    if (its.n && its.n < all.n && common_prefix(&all, &its) == its.n) {
        out->start = session;
        out->source = source;
    } else {
        linnet_session_free(session);
    }
}

linnet_status conversations_prompt(conversations *c, const linnet_message *messages, size_t n,
                                   const char *name, conversation_prompt *out, linnet_error *err) {
    *out = (conversation_prompt){.source = ""};
    for (size_t i = 0; i < n; i++)
        if (!messages[i].role || !messages[i].content)
            return fail(err, LINNET_ERR_ARGUMENT, "message %zu: its role or content is NULL",
                        i + 1);
    linnet_status status = name ? check_name("conversation", name, err) : LINNET_OK;
    if (status) return status;
    uint8_t(*keys)[KEY] = keys_of(c, messages, n);
    if (!keys) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu messages", n);
    id_text held = {0}, all = {0};
    size_t known;
    bool lost;
    find_beginning(c, keys, messages, n, &known, &held, &lost, out);
    free(keys);
    if (known) status = ids_from(c, messages, n, known, true, &held, &all, err);
    if (!known || status == LINNET_ERR_UNSUPPORTED) {
        /* Nothing is known, or the template rewrites it. */
        known = held.n = 0;
        linnet_session_free(out->start);
        out->start = NULL;
        out->source = "";
        status = ids_from(c, messages, n, 0, true, NULL, &all, err);
    }
    if (status) {
        linnet_session_free(out->start);
        *out = (conversation_prompt){.source = ""};
    } else {
        out->tokens = all.at;
        out->n = all.n;
        out->mark = mark_of(c, messages, n, known, &held, &all);
        if (name && lost && !out->start) start_from_name(c, name, out);
    }
    free(held.at);
    return status;
}

/* ---- After an answer ------------------------------------------------------------------------ */

/* What the session lacks of the conversation: the rest of the text, the end of the turn. */
static linnet_status complete(conversations *c, const linnet_message *m, size_t n,
                              linnet_session *session, const char *rest, bool ended,
                              linnet_error *err) {
    id_text close = {0};
    linnet_status status = LINNET_OK;
    size_t cap = rest ? strlen(rest) + 8 : 0, n_rest = 0;
    int32_t *ids = NULL;
    if (!ended) status = ids_from(c, m, n, n, false, NULL, &close, err);
    if (!status && !(ids = malloc((cap + close.n + 1) * sizeof *ids)))
        status = fail(err, LINNET_ERR_MEMORY, "no memory for the end of an answer");
    if (!status && rest && *rest)
        status = linnet_tokenize(c->options.model, rest, strlen(rest), LINNET_MIDDLE, ids, cap,
                                 &n_rest, err);
    if (!status && n_rest > cap)
        status = fail(err, LINNET_ERR_MEMORY, "the end of an answer has more tokens than bytes");
    if (!status && n_rest + close.n) {
        if (close.n) memcpy(ids + n_rest, close.at, close.n * sizeof *ids);
        linnet_item item = {.session = session,
                            .tokens = ids,
                            .n_tokens = n_rest + close.n,
                            .want = LINNET_LOGITS_LAST,
                            .sampled = true};
        status = linnet_forward(&item, 1, NULL, NULL, err);
    }
    free(close.at);
    free(ids);
    return status;
}

void conversations_keep(conversations *c, const linnet_message *messages, size_t n,
                        const char *name, linnet_session *session, const char *rest, bool ended) {
    linnet_error err;
    uint64_t evictions;
    if (!session) return;
    uint8_t(*keys)[KEY] = keys_of(c, messages, n);
    linnet_status status = LINNET_OK;
    if (!keys || !n || !is_answer(&messages[n - 1]) ||
        (name && !conversations_name_ok(name, strlen(name))))
        status = fail(&err, LINNET_ERR_ARGUMENT, "there is no answer to keep");
    if (!status) status = complete(c, messages, n, session, rest, ended, &err);
    if (status) {
        pthread_mutex_lock(&c->lock);
        c->stats.not_kept++;
        pthread_mutex_unlock(&c->lock);
        /* A full context ends a conversation; there is nothing to go on from. */
        if (status != LINNET_ERR_CONTEXT && status != LINNET_ERR_UNSUPPORTED)
            conversations_say(c, err.text);
        linnet_session_free(session);
        free(keys);
        return;
    }
    keep_in_cache(c, session, &evictions);
    remember(c, keys[n], session, evictions);
    char hex[HEX];
    sodium_bin2hex(hex, HEX, keys[n], KEY);
    for (size_t i = 0; i < c->n_stores; i++) {
        shared *s = &c->stores[i];
        if (s->store->hashes) (void)store_put(c, s, (store_key){false, hex}, session, &err);
        if (name) (void)store_put(c, s, (store_key){true, name}, session, &err);
    }
    if (name)
        keep_named(c, name, session, evictions);
    else
        linnet_session_free(session);
    free(keys);
}

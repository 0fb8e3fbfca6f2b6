/* States by name. */
#include "conversations_parts.h"
#include "../error.h"

#include <string.h>

bool conversations_name_ok(const char *name, size_t n) {
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    return n >= 1 && n <= 128 && name[0] != '.' && strspn(name, allowed) == n && strlen(name) == n;
}

linnet_status check_name(const char *what, const char *name, linnet_error *err) {
    if (name && conversations_name_ok(name, strlen(name))) return LINNET_OK;
    return fail(err, LINNET_ERR_ARGUMENT,
                "\"%s\" is to be 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with a dot", what);
}

static void name_key(const char *name, uint8_t out[KEY]) {
    crypto_generichash_state h;
    crypto_generichash_init(&h, (const uint8_t *)"name", 4, KEY);
    hash_text(&h, name, strlen(name));
    crypto_generichash_final(&h, out, KEY);
}

bool keep_named(conversations *c, const char *name, linnet_session *session, uint64_t evictions) {
    uint8_t key[KEY];
    name_key(name, key);
    pthread_mutex_lock(&c->lock);
    bool fits = shelf_put(&c->shelf, key, NULL, 0, session, evictions);
    pthread_mutex_unlock(&c->lock);
    return fits;
}

linnet_session *named_copy(conversations *c, const char *name, bool always, bool *cached) {
    uint8_t key[KEY];
    linnet_session *session = NULL;
    linnet_error err;
    name_key(name, key);
    pthread_mutex_lock(&c->lock);
    const shelf_entry *e = shelf_find(&c->shelf, key);
    *cached = e && in_cache(c, e);
    if (e && (always || !*cached) && linnet_session_fork(e->session, &session, &err))
        session = NULL;
    pthread_mutex_unlock(&c->lock);
    return session;
}

static linnet_status save_under(conversations *c, const char *to, const linnet_session *session,
                                linnet_error *err) {
    linnet_status worst = LINNET_OK;
    bool saved = false;
    for (size_t i = 0; i < c->n_stores; i++) {
        linnet_error its;
        linnet_status status = store_put(c, &c->stores[i], (store_key){true, to}, session, &its);
        saved = saved || !status;
        if (status) worst = fail(err, status, "%s", its.text);
    }
    return saved ? LINNET_OK : worst;
}

linnet_status conversations_state(conversations *c, state_action action, const char *id,
                                  const char *to, uint64_t *bytes, size_t *tokens,
                                  linnet_error *err) {
    uint64_t evictions;
    linnet_status status = check_name("id", id, err);
    if (!status) status = check_name("to", to, err);
    if (!status && action != STATE_FORK && !c->n_stores)
        status = fail(err, LINNET_ERR_UNSUPPORTED,
                      "states are kept in memory alone: start the server with --cache-dir or "
                      "--redis to save and restore them");
    if (status) return status;
    bool cached;
    linnet_session *session = action == STATE_RESTORE ? NULL : named_copy(c, id, true, &cached);
    if (!session) session = stored(c, id, NULL);
    if (!session)
        return fail(err, LINNET_ERR_ARGUMENT, "there is no state with the name \"%s\"%s", id,
                    action == STATE_RESTORE ? " in the store" : "");
    *bytes = linnet_session_size(session);
    linnet_session_tokens(session, tokens);
    if (action == STATE_SAVE) {
        status = save_under(c, to, session, err);
        linnet_session_free(session);
        return status;
    }
    /* So the next turn of the conversation finds it, whatever happens to the name. */
    keep_in_cache(c, session, &evictions);
    if (keep_named(c, to, session, evictions)) return LINNET_OK;
    return fail(err, LINNET_ERR_MEMORY,
                "a state of %llu bytes does not fit into the %llu for states with a name",
                (unsigned long long)*bytes, (unsigned long long)c->shelf.budget);
}

/* Conversations: sampled ids found again by what was said, states by name and by hash, in memory,
 * in a folder, and in a real redis-server that the test starts, breaks and stops. */
#include "support.h"

#include "../server/conversations.h"
#include "../server/store.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHAT "tests/data/cli/chat.gguf" /* byte b is token b; 256 "he", 257 "ll", 258 "hell" */
enum { END = 261, MAX = 512 };

static linnet_model *model;
static char work[64];

static int open_all(void **state) {
    (void)state;
    linnet_model_options o = {.threads = 1};
    signal(SIGPIPE, SIG_IGN);
    model = open_model(CHAT, &o);
    strcpy(work, "/tmp/linnet-conversations-XXXXXX");
    return mkdtemp(work) ? 0 : -1;
}

static int close_all(void **state) {
    (void)state;
    char command[128];
    linnet_model_close(model);
    snprintf(command, sizeof command, "rm -rf %s", work);
    return system(command);
}

/* ---- A server's part in a conversation ------------------------------------------------------- */

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char last_line[2048];
static int n_lines;
static void take_line(const char *line) {
    pthread_mutex_lock(&log_lock);
    snprintf(last_line, sizeof last_line, "%s", line);
    n_lines++;
    pthread_mutex_unlock(&log_lock);
}

typedef struct {
    linnet_cache *cache;
    conversations *c;
    linnet_session_options session;
} side;

static side new_side(const char *dir, const char *redis, uint64_t bytes) {
    side s = {.session = {.ctx = 2048}};
    linnet_error err;
    if (linnet_cache_new(&s.cache, model, NULL, &err)) fail_msg("%s", err.text);
    conversations_options o = {.model = model,
                               .cache = s.cache,
                               .session = s.session,
                               .dir = dir,
                               .redis = redis,
                               .bytes = bytes,
                               .log = take_line};
    n_lines = 0;
    if (conversations_new(&s.c, &o, &err)) fail_msg("%s", err.text);
    return s;
}

static void free_side(side *s) {
    conversations_free(s->c);
    linnet_cache_free(s->cache);
}

static conversations_stats stats_of(const side *s) {
    conversations_stats stats;
    conversations_get_stats(s->c, &stats);
    return stats;
}

static conversation_prompt prompt_of(const side *s, const linnet_message *talk, size_t n,
                                     const char *name) {
    conversation_prompt p;
    linnet_error err;
    if (conversations_prompt(s->c, talk, n, name, &p, &err)) fail_msg("%s", err.text);
    return p;
}

static void free_prompt(conversation_prompt *p) {
    free(p->tokens);
    linnet_session_free(p->start);
}

static void feed(linnet_session *s, const int32_t *ids, size_t n) {
    linnet_error err;
    if (n && linnet_feed(s, ids, n, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
}

/* What the scheduler does for a prompt: from its state, or from the cache. *reused: tokens. */
static linnet_session *answering(const side *s, const conversation_prompt *p, size_t *reused) {
    linnet_error err;
    linnet_session *session;
    linnet_reuse reuse;
    if (p->start) {
        if (linnet_session_fork(p->start, &session, &err)) fail_msg("%s", err.text);
        linnet_session_tokens(session, reused);
        feed(session, p->tokens + *reused, p->n - *reused);
        return session;
    }
    session = open_session(model, &s->session);
    if (linnet_session_sync(session, s->cache, p->tokens, p->n, p->mark, &reuse, &err))
        fail_msg("%s", err.text);
    *reused = reuse.n_reused;
    return session;
}

/* A turn whose answer is sampled as `ids`, a text without its end token. Returns what the next turn
 * begins with. */
typedef struct {
    int32_t at[MAX];
    size_t n, reused;
} timeline;
static timeline turn(const side *s, linnet_message *talk, size_t n, const char *name,
                     const int32_t *ids, size_t n_ids, char *answer) {
    timeline t = {.n = 0};
    linnet_error err;
    const int32_t end = END;
    size_t bytes;
    conversation_prompt p = prompt_of(s, talk, n, name);
    linnet_session *session = answering(s, &p, &t.reused);
    feed(session, ids, n_ids);
    feed(session, &end, 1);
    assert_int_equal(linnet_detokenize(model, ids, n_ids, 0, answer, 200, &bytes, &err), LINNET_OK);
    answer[bytes] = 0;
    talk[n] = (linnet_message){"assistant", answer};
    t.n = p.n + n_ids + 1;
    assert_true(t.n <= MAX);
    memcpy(t.at, p.tokens, p.n * sizeof *t.at);
    memcpy(t.at + p.n, ids, n_ids * sizeof *t.at);
    t.at[t.n - 1] = END;
    conversations_keep(s->c, talk, n + 1, name, session, NULL, true);
    free_prompt(&p);
    return t;
}

static bool begins_with(const conversation_prompt *p, const timeline *t) {
    return p->n > t->n && !memcmp(p->tokens, t->at, t->n * sizeof *t->at);
}

/* The text "hell" in three ways to sample it. */
static const int32_t one_by_one[] = {'h', 'e', 'l', 'l'}, in_two[] = {256, 'l', 'l'},
                     at_once[] = {258};

/* ---- In memory ------------------------------------------------------------------------------- */

static void sampled_ids_are_replayed(void **state) {
    (void)state;
    side s = new_side(NULL, NULL, 0);
    char a[3][256];
    linnet_message talk[8] = {{"system", "Be brief."}, {"user", "Hi"}};
    timeline first = turn(&s, talk, 2, NULL, one_by_one, 4, a[0]);
    assert_string_equal(a[0], "hell");
    talk[3] = (linnet_message){"user", "hell?"};

    /* What is tokenized anew is another timeline: "hell" is one token. */
    int32_t ids[MAX];
    size_t n;
    linnet_error err;
    assert_int_equal(linnet_chat_tokenize(model, NULL, talk, 4, true, ids, MAX, &n, &err), 0);
    conversation_prompt p = prompt_of(&s, talk, 4, NULL);
    assert_int_equal(p.n, n + 3);
    assert_true(begins_with(&p, &first));
    assert_int_equal(p.mark, first.n);
    assert_memory_equal(p.tokens + first.n, ids + first.n - 3, (n + 3 - first.n) * sizeof *ids);
    free_prompt(&p);

    timeline second = turn(&s, talk, 4, NULL, in_two, 3, a[1]);
    assert_int_equal(second.reused, first.n); /* the state after the answer, nothing less */
    talk[5] = (linnet_message){"user", "Go on"};
    p = prompt_of(&s, talk, 6, NULL);
    assert_true(begins_with(&p, &second));
    free_prompt(&p);

    /* An edited question, and an edited one before: shorter beginnings. */
    talk[3].content = "Why?";
    p = prompt_of(&s, talk, 6, NULL);
    assert_true(begins_with(&p, &first) && !begins_with(&p, &second));
    assert_true(p.mark > first.n && p.mark < p.n); /* the last turn, in what is new */
    free_prompt(&p);
    p = prompt_of(&s, talk, 4, NULL);
    assert_true(begins_with(&p, &first));
    assert_int_equal(p.mark, first.n);
    free_prompt(&p);
    talk[1].content = "Ho";
    p = prompt_of(&s, talk, 4, NULL);
    assert_false(begins_with(&p, &first));
    assert_int_equal(p.n, n + 2); /* as it is tokenized: "hell?" was 2 ids, "Why?" is 4 */
    free_prompt(&p);
    talk[1].content = "Hi";
    talk[3].content = "hell?";

    /* An edited answer is a text of the client's. */
    talk[2].content = "hello";
    p = prompt_of(&s, talk, 4, NULL);
    assert_int_equal(p.n, n + 1);
    free_prompt(&p);
    talk[2].content = "hell";

    /* The same text sampled otherwise: the last one counts. */
    timeline again = turn(&s, talk, 2, NULL, at_once, 1, a[2]);
    talk[3] = (linnet_message){"user", "hell?"};
    p = prompt_of(&s, talk, 4, NULL);
    assert_int_equal(p.n, n);
    assert_true(begins_with(&p, &again));
    free_prompt(&p);
    conversations_stats stats = stats_of(&s);
    assert_int_equal(stats.remembered, 2);
    assert_int_equal(stats.hits, 6);
    assert_int_equal(stats.misses, 2);
    assert_int_equal(stats.not_kept, 0);
    assert_true(stats.store_up);
    assert_int_equal(n_lines, 0);
    free_side(&s);
}

/* Clients trim the answers that they send back; nothing else may differ. */
static void outer_blanks_of_answers_do_not_count(void **state) {
    (void)state;
    static const int32_t padded[] = {' ', 'h', 'e', ' ', 'l', '\n'};
    side s = new_side(NULL, NULL, 0);
    char a[256];
    linnet_message talk[4] = {{"user", "Hi"}};
    timeline t = turn(&s, talk, 1, NULL, padded, 6, a);
    talk[2] = (linnet_message){"user", "So?"};
    static const char *const same[] = {" he l\n", "he l", "\n he l "}, *const others[] = {
                                                                           "hel", "he  l", "he l.",
                                                                           ""};
    for (size_t i = 0; i < 3; i++) {
        talk[1].content = same[i];
        conversation_prompt p = prompt_of(&s, talk, 3, NULL);
        assert_true(begins_with(&p, &t));
        free_prompt(&p);
    }
    for (size_t i = 0; i < 4; i++) {
        talk[1].content = others[i];
        conversation_prompt p = prompt_of(&s, talk, 3, NULL);
        assert_false(begins_with(&p, &t));
        free_prompt(&p);
    }
    talk[1].content = a;
    talk[0].content = "Hi ";
    conversation_prompt p = prompt_of(&s, talk, 3, NULL);
    assert_false(begins_with(&p, &t));
    free_prompt(&p);
    free_side(&s);
}

/* No list of messages is taken for another whose texts are the same one after the other. */
static void texts_do_not_run_together(void **state) {
    (void)state;
    side s = new_side(NULL, NULL, 0);
    char a[256];
    linnet_message talk[5] = {{"user", "ab"}, {"user", "c"}};
    timeline t = turn(&s, talk, 2, NULL, one_by_one, 4, a);
    linnet_message other[] = {{"user", "a"}, {"user", "bc"}, {"assistant", a}, {"user", "x"}};
    conversation_prompt p = prompt_of(&s, other, 4, NULL);
    assert_false(begins_with(&p, &t));
    free_prompt(&p);
    linnet_message third[] = {{"system", "ab"}, {"user", "c"}, {"assistant", a}, {"user", "x"}};
    p = prompt_of(&s, third, 4, NULL);
    assert_false(begins_with(&p, &t));
    free_prompt(&p);
    free_side(&s);
}

/* An answer that was cut: what is missing is fed, so the next turn finds the whole. */
static void cut_answers_are_completed(void **state) {
    (void)state;
    static const struct {
        const char *text, *rest;
        int32_t held[4], kept[8];
        size_t n_held, n_kept;
    } cases[] = {
        {"he", NULL, {'h', 'e'}, {'h', 'e', END}, 2, 3},        /* max_tokens */
        {"hell", "ll", {'h', 'e'}, {'h', 'e', 257, END}, 2, 4}, /* a stop string */
        {"hell", "hell", {0}, {258, END}, 0, 2},                /* at once */
        {"", "", {0}, {END}, 0, 1},                             /* nothing was said */
        {"h\xc3\xa9", "\xc3\xa9", {'h'}, {'h', 0xc3, 0xa9, END}, 1, 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        side s = new_side(NULL, NULL, 0);
        linnet_message talk[] = {{"user", "Hi"}, {"assistant", cases[i].text}, {"user", "So?"}};
        conversation_prompt p = prompt_of(&s, talk, 1, NULL);
        size_t reused, n_asked = p.n;
        linnet_session *session = answering(&s, &p, &reused);
        feed(session, cases[i].held, cases[i].n_held);
        free_prompt(&p);
        conversations_keep(s.c, talk, 2, NULL, session, cases[i].rest, false);
        p = prompt_of(&s, talk, 3, NULL);
        assert_int_equal(p.mark, n_asked + cases[i].n_kept);
        assert_memory_equal(p.tokens + n_asked, cases[i].kept, cases[i].n_kept * sizeof *p.tokens);
        session = answering(&s, &p, &reused);
        assert_int_equal(reused, p.mark);
        linnet_session_free(session);
        free_prompt(&p);
        assert_int_equal(stats_of(&s).not_kept, 0);
        free_side(&s);
    }
}

static void what_cannot_be_kept(void **state) {
    (void)state;
    side s = new_side(NULL, NULL, 0);
    linnet_message talk[] = {{"user", "Hi"}, {"assistant", "x"}, {"user", "So?"}};
    linnet_session_options small = {.ctx = 4};
    linnet_session *session = open_session(model, &small);
    static const int32_t ids[] = {'a', 'b', 'c', 'd'};
    feed(session, ids, 4);
    conversations_keep(s.c, talk, 2, NULL, session, NULL, false); /* no room for the end */
    assert_int_equal(stats_of(&s).not_kept, 1);
    assert_int_equal(n_lines, 0);
    session = open_session(model, &s.session);
    feed(session, ids, 4);
    conversations_keep(s.c, talk, 1, NULL, session, NULL, true); /* not an answer */
    assert_int_equal(stats_of(&s).not_kept, 2);
    assert_int_equal(n_lines, 1);
    conversations_keep(s.c, talk, 2, NULL, NULL, NULL, true); /* the job failed */
    assert_int_equal(stats_of(&s).remembered, 0);

    conversation_prompt p;
    linnet_error err;
    talk[1].content = NULL;
    assert_int_equal(conversations_prompt(s.c, talk, 3, NULL, &p, &err), LINNET_ERR_ARGUMENT);
    assert_string_equal(err.text, "message 2: its role or content is NULL");
    assert_int_equal(conversations_prompt(s.c, talk, 1, "../x", &p, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "\"conversation\" is to be 1 to 128 of"));
    free_side(&s);
}

/* A budget in bytes: the oldest timelines go. */
static void memory_has_a_budget(void **state) {
    (void)state;
    side s = new_side(NULL, NULL, 20000);
    char text[200][16], a[200][256];
    timeline first, last;
    for (size_t i = 0; i < 200; i++) {
        snprintf(text[i], sizeof text[i], "number %zu", i);
        linnet_message talk[4] = {{"user", text[i]}};
        last = turn(&s, talk, 1, i % 50 ? NULL : "kept", one_by_one, 4, a[i]);
        if (!i) first = last;
        assert_true(stats_of(&s).bytes <= 20000);
    }
    conversations_stats stats = stats_of(&s);
    assert_true(stats.remembered > 20 && stats.remembered < 150);
    linnet_message talk[] = {{"user", text[0]}, {"assistant", a[0]}, {"user", "So?"}};
    conversation_prompt p = prompt_of(&s, talk, 3, NULL);
    assert_false(begins_with(&p, &first));
    free_prompt(&p);
    talk[0].content = text[199];
    p = prompt_of(&s, talk, 3, NULL);
    assert_true(begins_with(&p, &last));
    free_prompt(&p);
    free_side(&s);
}

/* ---- Names and the folder -------------------------------------------------------------------- */

static void names(void **state) {
    (void)state;
    static const char *const bad[] = {"",         ".",           "..",  ".a",   "../x",
                                      "a/b",      "/etc/passwd", "a b", "a\nb", "a\\b",
                                      "\xc3\xa9", "a:b",         "*",   "a\x01"};
    static const char *const good[] = {"a", "A-Z_0.9", "a..b", "-", "_", "state.state"};
    char longest[130];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(conversations_name_ok(bad[i], strlen(bad[i])));
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(conversations_name_ok(good[i], strlen(good[i])));
    assert_false(conversations_name_ok("a\0b", 3));
    memset(longest, 'x', sizeof longest);
    longest[129] = 0;
    assert_false(conversations_name_ok(longest, 129));
    longest[128] = 0;
    assert_true(conversations_name_ok(longest, 128));

    side s = new_side(NULL, NULL, 0);
    linnet_error err;
    uint64_t bytes;
    size_t tokens;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(conversations_state(s.c, STATE_FORK, bad[i], "b", &bytes, &tokens, &err),
                         LINNET_ERR_ARGUMENT);
        assert_non_null(strstr(err.text, "\"id\" is to be"));
        assert_int_equal(conversations_state(s.c, STATE_FORK, "b", bad[i], &bytes, &tokens, &err),
                         LINNET_ERR_ARGUMENT);
        assert_non_null(strstr(err.text, "\"to\" is to be"));
    }
    assert_int_equal(conversations_state(s.c, STATE_FORK, NULL, "b", &bytes, &tokens, &err),
                     LINNET_ERR_ARGUMENT);
    assert_int_equal(conversations_state(s.c, STATE_FORK, "a", "b", &bytes, &tokens, &err),
                     LINNET_ERR_ARGUMENT);
    assert_string_equal(err.text, "there is no state with the name \"a\"");
    assert_int_equal(conversations_state(s.c, STATE_SAVE, "a", "b", &bytes, &tokens, &err),
                     LINNET_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "--cache-dir or --redis"));
    free_side(&s);
}

/* The folder of named states in `dir`. */
static void states_folder(const char *dir, char *out, size_t size) {
    char states[112];
    snprintf(states, sizeof states, "%.90s/states", dir);
    DIR *d = opendir(states);
    assert_non_null(d);
    struct dirent *e;
    while ((e = readdir(d)) && e->d_name[0] == '.') {
    }
    assert_non_null(e);
    snprintf(out, size, "%s/%.40s", states, e->d_name);
    closedir(d);
}

/* A state that the cache has no room for is found under its name, not computed again. */
static void larger_than_the_cache(void **state) {
    (void)state;
    linnet_error err;
    char a[256];
    side s = {.session = {.ctx = 2048}};
    linnet_cache_options small = {.bytes = 4096};
    if (linnet_cache_new(&s.cache, model, &small, &err)) fail_msg("%s", err.text);
    conversations_options o = {.model = model,
                               .cache = s.cache,
                               .cache_bytes = small.bytes,
                               .session = s.session,
                               .bytes = 1 << 20};
    if (conversations_new(&s.c, &o, &err)) fail_msg("%s", err.text);
    linnet_message talk[4] = {{"user", "Hi"}};
    timeline t = turn(&s, talk, 1, "large", one_by_one, 4, a);
    talk[2] = (linnet_message){"user", "So?"};
    conversation_prompt p = prompt_of(&s, talk, 3, "large");
    assert_non_null(p.start);
    size_t held;
    linnet_session_tokens(p.start, &held);
    assert_int_equal(held, t.n);
    assert_string_equal(p.source, "memory");
    free_prompt(&p);
    free_side(&s);
}

static void states_by_name(void **state) {
    (void)state;
    char dir[96], folder[160], path[256], link[256], a[2][256];
    linnet_error err;
    uint64_t bytes = 0, forked;
    size_t tokens = 0;
    snprintf(dir, sizeof dir, "%s/names", work);
    side s = new_side(dir, NULL, 0);
    linnet_message talk[4] = {{"user", "Hi"}};
    timeline t = turn(&s, talk, 1, "alice", one_by_one, 4, a[0]);

    assert_int_equal(conversations_state(s.c, STATE_FORK, "alice", "bob", &forked, &tokens, &err),
                     LINNET_OK);
    assert_int_equal(tokens, t.n);
    assert_int_equal(conversations_state(s.c, STATE_SAVE, "bob", "saved", &bytes, &tokens, &err),
                     LINNET_OK);
    assert_int_equal(bytes, forked);
    assert_int_equal(tokens, t.n);
    assert_int_equal(stats_of(&s).named, 2);

    /* Files as linnet_session_save_file writes them, for nobody else, and nothing beside them. */
    states_folder(dir, folder, sizeof folder);
    struct stat st;
    snprintf(path, sizeof path, "%s/saved.state", folder);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, bytes);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(folder, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    linnet_session *loaded = open_session(model, &s.session);
    if (linnet_session_load_file(loaded, path, &err)) fail_msg("%s", err.text);
    size_t n;
    assert_memory_equal(linnet_session_tokens(loaded, &n), t.at, t.n * sizeof *t.at);
    assert_int_equal(n, t.n);
    linnet_session_free(loaded);
    free_side(&s);

    /* A restart: ids from the journal, states from the folder. */
    s = new_side(dir, NULL, 0);
    assert_int_equal(stats_of(&s).remembered, 1);
    assert_int_equal(stats_of(&s).named, 0);
    talk[2] = (linnet_message){"user", "So?"};
    conversation_prompt p = prompt_of(&s, talk, 3, NULL);
    assert_true(begins_with(&p, &t));
    assert_null(p.start);
    free_prompt(&p);
    p = prompt_of(&s, talk, 3, "alice");
    assert_non_null(p.start);
    assert_string_equal(p.source, "folder");
    linnet_session_tokens(p.start, &n);
    assert_int_equal(n, t.n);
    free_prompt(&p);
    p = prompt_of(&s, talk, 1, "alice"); /* begins anew */
    assert_null(p.start);
    free_prompt(&p);
    assert_int_equal(
        conversations_state(s.c, STATE_RESTORE, "saved", "carol", &bytes, &tokens, &err),
        LINNET_OK);
    assert_int_equal(tokens, t.n);
    assert_int_equal(conversations_state(s.c, STATE_RESTORE, "bob", "x", &bytes, &tokens, &err),
                     LINNET_ERR_ARGUMENT);
    assert_string_equal(err.text, "there is no state with the name \"bob\" in the store");
    timeline second = turn(&s, talk, 3, "carol", in_two, 3, a[1]); /* the restored state serves */
    assert_int_equal(second.reused, t.n);

    /* Links are not followed, whatever they point to; a folder is no state; damage is refused. */
    snprintf(link, sizeof link, "%s/link.state", folder);
    assert_int_equal(symlink(path, link), 0);
    assert_int_equal(conversations_state(s.c, STATE_RESTORE, "link", "x", &bytes, &tokens, &err),
                     LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "not a regular file"));
    assert_int_equal(n_lines, 1);
    assert_int_equal(conversations_state(s.c, STATE_SAVE, "carol", "link", &bytes, &tokens, &err),
                     LINNET_OK);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISREG(st.st_mode)); /* replaced, and what it pointed to is as it was */
    assert_int_equal(stat(path, &st), 0);
    assert_true((uint64_t)st.st_size < bytes);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "x", 1, 300), 1);
    close(fd);
    assert_int_equal(conversations_state(s.c, STATE_RESTORE, "saved", "x", &bytes, &tokens, &err),
                     LINNET_ERR_ARGUMENT);
    snprintf(path, sizeof path, "%s/folder.state", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(conversations_state(s.c, STATE_RESTORE, "folder", "x", &bytes, &tokens, &err),
                     LINNET_ERR_ARGUMENT);
    assert_int_not_equal(
        conversations_state(s.c, STATE_SAVE, "carol", "folder", &bytes, &tokens, &err), LINNET_OK);
    assert_true(stats_of(&s).store_errors >= 4);
    free_side(&s);
}

/* A journal that was cut, damaged or written to by others: what is whole is found. */
static void journals(void **state) {
    (void)state;
    char dir[96], folder[160], path[256], a[3][256];
    snprintf(dir, sizeof dir, "%s/journal", work);
    side s = new_side(dir, NULL, 0);
    static const char *const texts[] = {"one", "two", "three"};
    timeline t[3];
    for (size_t i = 0; i < 3; i++) {
        linnet_message talk[3] = {{"user", texts[i]}};
        t[i] = turn(&s, talk, 1, NULL, one_by_one, 4, a[i]);
    }
    free_side(&s);
    states_folder(dir, folder, sizeof folder);
    snprintf(path, sizeof path, "%s/ids", folder);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    size_t size = (size_t)st.st_size, record = size - (64 + 4 * t[2].n);
    uint8_t *whole = malloc(size);
    int fd = open(path, O_RDWR);
    assert_int_equal(read(fd, whole, size), size);
    for (int damage = 0; damage < 4; damage++) {
        static const size_t left[] = {2, 2, 2, 3};
        assert_int_equal(pwrite(fd, whole, size, 0), size);
        assert_int_equal(ftruncate(fd, (off_t)size), 0);
        if (damage == 0) assert_int_equal(ftruncate(fd, (off_t)size - 5), 0);
        if (damage == 1) assert_int_equal(pwrite(fd, "\xff", 1, 60), 1); /* an id of the first */
        if (damage == 2) /* a length without end in the last */
            assert_int_equal(pwrite(fd, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, (off_t)record + 8),
                             8);
        if (damage == 3) assert_int_equal(pwrite(fd, "LINNETID rubbish", 16, (off_t)size), 16);
        s = new_side(dir, NULL, 0);
        assert_int_equal(stats_of(&s).remembered, left[damage]);
        linnet_message talk[] = {{"user", "two"}, {"assistant", "hell"}, {"user", "So?"}};
        conversation_prompt p = prompt_of(&s, talk, 3, NULL);
        assert_true(begins_with(&p, &t[1]));
        free_prompt(&p);
        talk[1].content = "new"; /* what is added now is found again */
        linnet_message more[4] = {{"user", "four"}};
        turn(&s, more, 1, NULL, in_two, 3, a[0]);
        free_side(&s);
        s = new_side(dir, NULL, 0);
        assert_int_equal(stats_of(&s).remembered, left[damage] + 1);
        free_side(&s);
    }
    close(fd);
    free(whole);

    /* It is written anew from what is remembered, once it is much larger than that. */
    s = new_side(dir, NULL, 2000);
    for (size_t i = 0; i < 60; i++) {
        char text[16];
        snprintf(text, sizeof text, "number %zu", i);
        linnet_message talk[3] = {{"user", text}};
        turn(&s, talk, 1, NULL, one_by_one, 4, a[0]);
        assert_int_equal(stat(path, &st), 0);
        assert_true(st.st_size < 5000);
    }
    size_t kept = stats_of(&s).remembered;
    free_side(&s);
    s = new_side(dir, NULL, 2000);
    assert_int_equal(stats_of(&s).remembered, kept);
    free_side(&s);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/dev/null", path), 0);
    conversations_options o = {.model = model, .dir = dir};
    linnet_error err;
    conversations *c;
    assert_int_equal(conversations_new(&c, &o, &err), LINNET_ERR_IO);
    assert_int_equal(unlink(path), 0);
    o.dir = "/proc/none/x";
    assert_int_equal(conversations_new(&c, &o, &err), LINNET_ERR_IO);
    assert_non_null(strstr(err.text, "cannot create /proc/none/x"));
}

/* ---- Redis ----------------------------------------------------------------------------------- */

static int free_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    assert_int_equal(bind(fd, (struct sockaddr *)&a, n), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    close(fd);
    return ntohs(a.sin_port);
}

static bool have_redis(void) {
    if (!system("command -v redis-server >/dev/null")) return true;
    print_message("redis ... skipped 'redis-server is not installed: make test-clients does'\n");
    return false;
}

static redisContext *connected(int port) {
    for (int i = 0; i < 500; i++) {
        redisContext *c = redisConnect("127.0.0.1", port);
        redisReply *r = c && !c->err ? redisCommand(c, "PING") : NULL;
        bool up = r && r->type == REDIS_REPLY_STATUS;
        if (r) freeReplyObject(r);
        if (up) return c;
        if (c) redisFree(c);
        usleep(20000);
    }
    fail_msg("redis-server does not come up at port %d", port);
    return NULL;
}

static pid_t start_redis(int port) {
    char text[8];
    snprintf(text, sizeof text, "%d", port);
    pid_t pid = fork();
    if (!pid) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0), dup2(null, 1), dup2(null, 2);
        execlp("redis-server", "redis-server", "--port", text, "--bind", "127.0.0.1", "--save", "",
               "--appendonly", "no", "--dir", work, (char *)NULL);
        _exit(127);
    }
    redisFree(connected(port));
    return pid;
}

static void stop_redis(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* A command whose answer is an integer, or a text that the caller frees. */
static long long redis_number(redisContext *c, const char *command) {
    redisReply *r = redisCommand(c, command);
    assert_non_null(r);
    long long n = r->type == REDIS_REPLY_INTEGER ? r->integer : -1;
    freeReplyObject(r);
    return n;
}

/* The keys that hold states by hash; returns the first. */
static char *key_of_state(redisContext *c) {
    redisReply *r = redisCommand(c, "KEYS linnet:*");
    char *key = NULL;
    for (size_t i = 0; i < r->elements; i++)
        if (!key && !strstr(r->element[i]->str, ":name:")) key = strdup(r->element[i]->str);
    freeReplyObject(r);
    assert_non_null(key);
    return key;
}

/* After a failure the store is left alone for a quarter of a second, then longer. */
static void wait_until_up(const side *s, linnet_message *talk, size_t n) {
    for (int i = 0; i < 200 && !stats_of(s).store_up; i++) {
        char a[256];
        usleep(50000);
        conversation_prompt p = prompt_of(s, talk, n, NULL);
        free_prompt(&p);
        turn(s, talk, n, NULL, one_by_one, 4, a);
        talk[n].content = "hell";
    }
    assert_true(stats_of(s).store_up);
}

static void any_replica_goes_on(void **state) {
    (void)state;
    if (!have_redis()) return;
    int port = free_port();
    char address[32], a[4][256];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    pid_t pid = start_redis(port);
    redisContext *r = connected(port);
    side one = new_side(NULL, address, 0), two = new_side(NULL, address, 0);
    linnet_message talk[8] = {{"user", "Hi"}};
    timeline first = turn(&one, talk, 1, "alice", one_by_one, 4, a[0]);
    talk[2] = (linnet_message){"user", "So?"};
    conversation_prompt p = prompt_of(&two, talk, 3, NULL);
    assert_non_null(p.start);
    assert_string_equal(p.source, "redis");
    assert_true(begins_with(&p, &first));
    size_t n;
    linnet_session_tokens(p.start, &n);
    assert_int_equal(n, first.n);

    /* Bit for bit what the first replica computes. */
    conversation_prompt own = prompt_of(&one, talk, 3, NULL);
    assert_null(own.start); /* its cache has it */
    assert_int_equal(own.n, p.n);
    size_t reused, reused_own;
    linnet_session *x = answering(&two, &p, &reused), *y = answering(&one, &own, &reused_own);
    assert_int_equal(reused, first.n);
    assert_int_equal(reused_own, first.n);
    assert_memory_equal(linnet_session_logits(x), linnet_session_logits(y),
                        (size_t)linnet_model_get_info(model)->n_rows * sizeof(float));
    linnet_session_free(x);
    linnet_session_free(y);
    free_prompt(&p);
    free_prompt(&own);

    /* And back: the second turn was the other's. */
    timeline second = turn(&two, talk, 3, NULL, in_two, 3, a[1]);
    talk[4] = (linnet_message){"user", "And?"};
    p = prompt_of(&one, talk, 5, NULL);
    assert_true(begins_with(&p, &second));
    assert_non_null(p.start);
    free_prompt(&p);

    /* A third that never saw it, and a turn in between that nobody answered. */
    side three = new_side(NULL, address, 0);
    talk[3].content = "no";
    p = prompt_of(&three, talk, 5, NULL);
    assert_true(begins_with(&p, &first) && !begins_with(&p, &second));
    free_prompt(&p);
    talk[3].content = a[1];

    /* Names are shared; what is written expires. */
    uint64_t bytes;
    size_t tokens;
    linnet_error err;
    if (conversations_state(three.c, STATE_RESTORE, "alice", "al", &bytes, &tokens, &err))
        fail_msg("%s", err.text);
    assert_int_equal(tokens, first.n);
    if (conversations_state(three.c, STATE_SAVE, "al", "shared", &bytes, &tokens, &err))
        fail_msg("%s", err.text);
    if (conversations_state(one.c, STATE_RESTORE, "shared", "mine", &bytes, &tokens, &err))
        fail_msg("%s", err.text);
    char *key = key_of_state(r), command[256];
    snprintf(command, sizeof command, "TTL %s", key);
    long long ttl = redis_number(r, command);
    assert_true(ttl > 7 * 24 * 3600 - 60 && ttl <= 7 * 24 * 3600);
    snprintf(command, sizeof command, "STRLEN %s", key);
    assert_true(redis_number(r, command) > 1000);
    free(key);
    assert_int_equal(n_lines, 0);
    assert_int_equal(stats_of(&one).store_errors, 0);
    assert_true(stats_of(&one).store_writes >= 2);
    free_side(&three);

    /* Another model, or states of another kind, have keys of their own. */
    conversations_options o = {.model = model, .session = {.kv = LINNET_KV_F32}, .redis = address};
    conversations *other;
    assert_int_equal(conversations_new(&other, &o, &err), LINNET_OK);
    assert_int_equal(conversations_prompt(other, talk, 5, NULL, &p, &err), LINNET_OK);
    assert_null(p.start);
    free_prompt(&p);
    conversations_free(other);
    free_side(&one);
    free_side(&two);
    redisFree(r);
    stop_redis(pid);
}

static void redis_in_trouble(void **state) {
    (void)state;
    if (!have_redis()) return;
    int port = free_port();
    char address[32], a[4][256];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);

    /* Down from the start: said once, served all the same. */
    side s = new_side(NULL, address, 0), fresh = new_side(NULL, address, 0);
    linnet_message talk[8] = {{"user", "Hi"}};
    timeline t = turn(&s, talk, 1, NULL, one_by_one, 4, a[0]);
    assert_int_equal(n_lines, 1);
    assert_non_null(strstr(last_line, "conversations go on without it"));
    assert_non_null(strstr(last_line, address));
    talk[2] = (linnet_message){"user", "So?"};
    conversation_prompt p = prompt_of(&s, talk, 3, NULL);
    assert_true(begins_with(&p, &t));
    free_prompt(&p);
    turn(&s, talk, 1, NULL, one_by_one, 4, a[0]);
    assert_int_equal(n_lines, 1);
    assert_false(stats_of(&s).store_up);
    assert_true(stats_of(&s).store_errors >= 2);

    /* Comes up: said once, and it is used. */
    pid_t pid = start_redis(port);
    wait_until_up(&s, talk, 1);
    talk[2] = (linnet_message){"user", "So?"};
    assert_int_equal(n_lines, 2);
    assert_non_null(strstr(last_line, "the redis works again"));
    p = prompt_of(&fresh, talk, 3, NULL);
    assert_true(begins_with(&p, &t));
    assert_non_null(p.start);
    free_prompt(&p);

    /* Restarted in between: an idle connection that was closed is no failure. */
    stop_redis(pid);
    pid = start_redis(port);
    n_lines = 0;
    turn(&s, talk, 1, NULL, one_by_one, 4, a[0]);
    assert_int_equal(n_lines, 0);
    talk[2] = (linnet_message){"user", "So?"};

    /* Full. */
    redisContext *r = connected(port);
    freeReplyObject(redisCommand(r, "CONFIG SET maxmemory 1"));
    linnet_message more[3] = {{"user", "full"}};
    turn(&s, more, 1, NULL, one_by_one, 4, a[1]);
    turn(&s, more, 1, NULL, in_two, 3, a[1]);
    assert_int_equal(n_lines, 1);
    assert_non_null(strstr(last_line, "OOM"));
    freeReplyObject(redisCommand(r, "CONFIG SET maxmemory 0"));
    turn(&s, more, 1, NULL, in_two, 3, a[1]);
    assert_int_equal(n_lines, 2);
    freeReplyObject(redisCommand(r, "FLUSHALL"));

    /* Values that are none of ours: refused, said once, and the prompt is made without. */
    turn(&s, talk, 1, NULL, one_by_one, 4, a[0]);
    talk[2] = (linnet_message){"user", "So?"};
    char *key = key_of_state(r);
    redisReply *whole = redisCommand(r, "GET %s", key);
    assert_int_equal(whole->type, REDIS_REPLY_STRING);
    for (int kind = 0; kind < 6; kind++) {
        char *bytes = malloc((size_t)whole->len);
        size_t n = (size_t)whole->len;
        memcpy(bytes, whole->str, n);
        if (kind == 0) n = 0;
        if (kind == 1) n -= 1;
        if (kind == 2) bytes[n / 2] ^= 1;
        if (kind == 3) bytes[30] ^= 1; /* another model's */
        if (kind == 4) memset(bytes, 'x', n);
        freeReplyObject(redisCommand(r, "SET %s %b", key, bytes, n));
        if (kind == 5) {
            freeReplyObject(redisCommand(r, "DEL %s", key));
            freeReplyObject(redisCommand(r, "LPUSH %s x", key)); /* not even a string */
        }
        side other = new_side(NULL, address, 0);
        p = prompt_of(&other, talk, 3, NULL);
        assert_null(p.start);
        assert_false(begins_with(&p, &t));
        free_prompt(&p);
        p = prompt_of(&other, talk, 3, NULL);
        free_prompt(&p);
        assert_int_equal(n_lines, 1);
        assert_int_equal(stats_of(&other).store_errors, 2);
        free_side(&other);
        free(bytes);
    }
    freeReplyObject(whole);
    free(key);
    redisFree(r);

    /* Killed while connections are open. */
    stop_redis(pid);
    n_lines = 0;
    p = prompt_of(&fresh, more, 1, NULL);
    free_prompt(&p);
    turn(&s, talk, 1, NULL, one_by_one, 4, a[0]);
    turn(&s, talk, 1, NULL, one_by_one, 4, a[0]);
    assert_int_equal(n_lines, 1);
    free_side(&s);
    free_side(&fresh);
}

/* ---- A server that is no Redis --------------------------------------------------------------- */

typedef struct {
    int listener;
    const char *text;
    size_t n, repeat; /* sent so often, to every connection */
    useconds_t between;
    atomic_bool stop;
} rubbish;

static void *serve_rubbish(void *user) {
    rubbish *s = user;
    while (!s->stop) {
        int fd = accept(s->listener, NULL, NULL);
        if (fd < 0) break;
        struct timeval soon = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon);
        for (size_t i = 0; i < s->repeat && !s->stop; i++) {
            if (send(fd, s->text, s->n, MSG_NOSIGNAL) < 0) break;
            usleep(s->between);
        }
        if (!s->n) usleep(s->between); /* accepts, and is silent */
        close(fd);
    }
    return NULL;
}

static void rubbish_for_answers(void **state) {
    (void)state;
    static const char zeros[1 << 16];
    struct {
        const char *text;
        size_t n, repeat;
        useconds_t between;
        const char *says;
    } cases[] = {
        {"HTTP/1.1 400 Bad Request\r\n\r\n", 28, 1, 0, "not an answer of Redis"},
        {"$-7\r\n", 5, 1, 0, "redis at"},
        {"*-9999999999999999999\r\n", 23, 1, 0, "redis at"},
        {"*4294967295\r\n", 13, 1, 0, "redis at"},
        {"$99999999999999999999\r\n", 23, 1, 0, "redis at"},
        {":1\r\n", 4, 1, 100000, "with something else"},
        {"+OK\r\n", 5, 1, 100000, "with something else"},
        {"-LOADING wait\r\n", 15, 1, 100000, "LOADING"},
        {"", 0, 1, 600000, "does not answer"},
        {"", 0, 1, 0, "redis at"},
        {"$", 1, 50, 30000, "too slow"}, /* trickles */
        {zeros, sizeof zeros, 1 << 20, 0, "redis at"},
        {"$1000000000\r\n", 13, 1, 600000, "redis at"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof a;
        rubbish server = {.listener = socket(AF_INET, SOCK_STREAM, 0),
                          .text = cases[i].text,
                          .n = cases[i].n,
                          .repeat = cases[i].repeat,
                          .between = cases[i].between};
        assert_int_equal(bind(server.listener, (struct sockaddr *)&a, size), 0);
        assert_int_equal(listen(server.listener, 8), 0);
        assert_int_equal(getsockname(server.listener, (struct sockaddr *)&a, &size), 0);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, serve_rubbish, &server), 0);

        char address[32];
        snprintf(address, sizeof address, "127.0.0.1:%d", ntohs(a.sin_port));
        store_redis_options o = {.address = address,
                                 .prefix = "linnet:x",
                                 .connect_seconds = 0.3,
                                 .command_seconds = 0.3,
                                 .max_bytes = 1 << 20};
        store *st;
        linnet_error err;
        store_key key = {false, "00"};
        size_t which = 9;
        assert_int_equal(store_redis_new(&st, &o, &err), LINNET_OK);
        linnet_session *session = open_session(model, NULL);
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        linnet_status got = st->get(st, &key, 1, session, &which, &err);
        clock_gettime(CLOCK_MONOTONIC, &after);
        if (got != LINNET_ERR_IO || !strstr(err.text, cases[i].says))
            fail_msg("case %zu: code %d, \"%s\"", i, got, err.text);
        assert_true(after.tv_sec - before.tv_sec <= 2);
        /* At once, without another wait: it is left alone for a while. */
        got = st->get(st, &key, 1, session, &which, &err);
        assert_int_equal(got, LINNET_ERR_IO);
        linnet_session_free(session);
        st->free(st);
        server.stop = true;
        shutdown(server.listener, SHUT_RDWR);
        close(server.listener);
        pthread_join(thread, NULL);
    }
}

/* A Redis that answers twice, or a state in small pieces. */
typedef struct {
    int listener;
    const uint8_t *state;
    size_t n;
} odd_server;

static void *serve_oddly(void *user) {
    odd_server *s = user;
    char head[32];
    int n = snprintf(head, sizeof head, "$%zu\r\n", s->n);
    for (int fd; (fd = accept(s->listener, NULL, NULL)) >= 0; close(fd)) {
        for (int i = 0; i < n && s->state; i++) {
            if (send(fd, head + i, 1, MSG_NOSIGNAL) < 0) break;
            usleep(5000);
        }
        const void *rest = s->state ? (const void *)s->state : "$-1\r\n+unasked\r\n";
        if (send(fd, rest, s->state ? s->n : 15, MSG_NOSIGNAL) < 0) continue;
        if (s->state && send(fd, "\r\n", 2, MSG_NOSIGNAL) < 0) continue;
        usleep(100000);
    }
    return NULL;
}

static void odd_answers(void **state) {
    (void)state;
    linnet_error err;
    linnet_session *session = open_session(model, NULL), *got = open_session(model, NULL);
    feed(session, one_by_one, 4);
    size_t n = linnet_session_size(session), which = 9;
    uint8_t *bytes = malloc(n);
    assert_int_equal(linnet_session_save(session, bytes, n, &err), LINNET_OK);
    for (int pieces = 0; pieces < 2; pieces++) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof a;
        odd_server server = {socket(AF_INET, SOCK_STREAM, 0), pieces ? bytes : NULL, n};
        assert_int_equal(bind(server.listener, (void *)&a, size), 0);
        assert_int_equal(listen(server.listener, 8), 0);
        assert_int_equal(getsockname(server.listener, (void *)&a, &size), 0);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, serve_oddly, &server), 0);
        char address[32];
        snprintf(address, sizeof address, "127.0.0.1:%d", ntohs(a.sin_port));
        store_redis_options o = {.address = address, .prefix = "linnet:x"};
        store *st;
        store_key key = {false, "00"};
        assert_int_equal(store_redis_new(&st, &o, &err), LINNET_OK);
        for (int i = 0; i < 2; i++) { /* the second one is not given what the first left */
            if (st->get(st, &key, 1, got, &which, &err)) fail_msg("%s", err.text);
            assert_int_equal(which, !pieces);
        }
        size_t held;
        const int32_t *ids = linnet_session_tokens(got, &held);
        assert_int_equal(held, pieces ? 4 : 0);
        if (pieces) assert_memory_equal(ids, one_by_one, sizeof one_by_one);
        st->free(st);
        shutdown(server.listener, SHUT_RDWR);
        close(server.listener);
        pthread_join(thread, NULL);
    }
    free(bytes);
    linnet_session_free(session);
    linnet_session_free(got);
}

static void addresses(void **state) {
    (void)state;
    static const char *const bad[] = {"",     "x",    ":1",    "x:",   "x:0",   "x:65536",
                                      "x:-1", "x:1a", "::1:5", "[]:5", "a:b:5", "x: "};
    static const char *const good[] = {"x:1", "127.0.0.1:6379", "[::1]:6379", "/run/redis.sock"};
    store_redis_options o = {.prefix = "linnet:x"};
    linnet_error err;
    store *s;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        o.address = bad[i];
        assert_int_equal(store_redis_new(&s, &o, &err), LINNET_ERR_ARGUMENT);
        assert_non_null(strstr(err.text, "expected HOST:PORT"));
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        o.address = good[i];
        if (store_redis_new(&s, &o, &err)) fail_msg("%s: %s", good[i], err.text);
        s->free(s);
    }
    linnet_session *session = open_session(model, NULL);
    o = (store_redis_options){.address = "127.0.0.1:1", .prefix = "linnet:x", .max_bytes = 10};
    assert_int_equal(store_redis_new(&s, &o, &err), LINNET_OK);
    assert_int_equal(s->put(s, (store_key){true, "a"}, session, &err), LINNET_ERR_MEMORY);
    assert_non_null(strstr(err.text, "the limit is 10"));
    linnet_session_free(session);
    s->free(s);
}

/* ---- Many at once ---------------------------------------------------------------------------- */

typedef struct {
    side *sides;
    int number;
} talker;

/* A conversation of its own, whose turns go from one replica to the other. */
static void *talk_for_long(void *user) {
    talker *t = user;
    char text[8][16], a[8][256], name[16];
    linnet_message talk[16];
    timeline last = {.n = 0};
    snprintf(name, sizeof name, "talker%d", t->number);
    for (size_t i = 0; i < 5; i++) {
        const side *s = &t->sides[(i + (size_t)t->number) % 2];
        int32_t ids[] = {'h', 'e', '0' + t->number, 'l', '0' + (int)i};
        snprintf(text[i], sizeof text[i], "%d and %zu", t->number, i);
        talk[2 * i] = (linnet_message){"user", text[i]};
        if (i) {
            conversation_prompt p = prompt_of(s, talk, 2 * i + 1, name);
            assert_true(begins_with(&p, &last));
            free_prompt(&p);
        }
        last = turn(s, talk, 2 * i + 1, name, ids, 5, a[i]);
    }
    return NULL;
}

static void many_talk_at_once(void **state) {
    (void)state;
    if (!have_redis()) return;
    int port = free_port();
    char address[32], dir[96];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    snprintf(dir, sizeof dir, "%s/many", work);
    pid_t pid = start_redis(port);
    side sides[] = {new_side(dir, address, 0), new_side(NULL, address, 0)};
    pthread_t threads[6];
    talker talkers[6];
    for (int i = 0; i < 6; i++) {
        talkers[i] = (talker){sides, i};
        assert_int_equal(pthread_create(&threads[i], NULL, talk_for_long, &talkers[i]), 0);
    }
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(n_lines, 0);
    assert_int_equal(stats_of(&sides[0]).misses + stats_of(&sides[1]).misses, 0);
    free_side(&sides[0]);
    free_side(&sides[1]);
    stop_redis(pid);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sampled_ids_are_replayed),
        cmocka_unit_test(outer_blanks_of_answers_do_not_count),
        cmocka_unit_test(texts_do_not_run_together),
        cmocka_unit_test(cut_answers_are_completed),
        cmocka_unit_test(what_cannot_be_kept),
        cmocka_unit_test(memory_has_a_budget),
        cmocka_unit_test(names),
        cmocka_unit_test(larger_than_the_cache),
        cmocka_unit_test(states_by_name),
        cmocka_unit_test(journals),
        cmocka_unit_test(any_replica_goes_on),
        cmocka_unit_test(redis_in_trouble),
        cmocka_unit_test(rubbish_for_answers),
        cmocka_unit_test(odd_answers),
        cmocka_unit_test(addresses),
        cmocka_unit_test(many_talk_at_once),
    };
    return cmocka_run_group_tests_name("conversations", tests, open_all, close_all);
}

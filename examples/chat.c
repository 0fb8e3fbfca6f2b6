/* A chat: every turn computes its own tokens only, on every mixer, however long the talk.
 *     cc chat.c $(pkg-config --cflags --libs linnet) -o chat && ./chat model.gguf */
#include <linnet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGES = 1000, LINE = 65536, IDS = 2 * LINE }; /* a byte is at most one token */
static int32_t ids[IDS];
static linnet_message said[MESSAGES];

static bool show(void *answer, const char *text, size_t bytes) {
    fwrite(text, 1, bytes, stdout);
    fwrite(text, 1, bytes, answer);
    return fflush(stdout) == 0;
}

int main(int argc, char **argv) {
    linnet_error err;
    linnet_model *model;
    linnet_session *session;
    linnet_generate_options how = LINNET_GENERATE_DEFAULT;
    how.feed_end = true; /* the answer's end token: the next turn goes on behind it */
    if (argc != 2) return fprintf(stderr, "usage: chat MODEL.gguf\n"), 2;
    if (linnet_model_open(&model, argv[1], NULL, &err) ||
        linnet_session_new(&session, model, NULL, &err))
        return fprintf(stderr, "chat: %s\n", err.text), 1;

    char line[LINE], *answer;
    size_t bytes, n, turn = 0; /* messages that the session holds */
    while (turn + 2 <= MESSAGES && (fputs("> ", stderr), fgets(line, LINE, stdin))) {
        line[strcspn(line, "\n")] = '\0';
        said[turn] = (linnet_message){"user", strdup(line)};
        FILE *out = open_memstream(&answer, &bytes);
        if (linnet_chat_continue(model, NULL, said, turn + 1, turn, true, ids, IDS, &n, &err) ||
            linnet_feed(session, ids, n, LINNET_LOGITS_LAST, &err) ||
            linnet_generate(session, &how, show, out, NULL, &err))
            return fprintf(stderr, "chat: %s\n", err.text), 1;
        fclose(out);
        said[turn + 1] = (linnet_message){"assistant", answer};
        turn += 2;
        printf("\n");
    }
    linnet_session_free(session);
    linnet_model_close(model);
    for (size_t i = 0; i < turn; i++)
        free((char *)said[i].content);
}

/* Sessions that take over what others hold. */
#ifndef FORK_H
#define FORK_H

#include "../model.h"

/* Every state of the model can be cut back to any earlier token: nothing but keys and values, of
 * which no window drops any. */
bool model_can_cut(const linnet_model *m);
/* The session's state at its first n tokens is still there. */
bool session_can_cut(const linnet_session *x, size_t n);
/* s, of the same model, keys and values and window mode, holds the first n tokens of `from`, which
 * can be cut there, and its logits if that is all of them. Pages are shared. `from` may be s. */
linnet_status session_become(linnet_session *s, const linnet_session *from, size_t n,
                             linnet_error *err);

#endif

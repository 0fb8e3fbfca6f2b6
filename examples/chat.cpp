// The same chat in C++17: handles free themselves, errors are exceptions.
//     c++ -std=c++17 chat.cpp $(pkg-config --cflags --libs linnet) -o chat && ./chat model.gguf
#include <linnet.h>

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

template <auto free> struct Free {
    template <class T> void operator()(T *p) const { free(p); }
};
using Model = std::unique_ptr<linnet_model, Free<linnet_model_close>>;
using Session = std::unique_ptr<linnet_session, Free<linnet_session_free>>;

static linnet_error err;
static void check(linnet_status status) {
    if (status) throw std::runtime_error(err.text);
}

static Model open_model(const char *path) {
    linnet_model *m;
    check(linnet_model_open(&m, path, nullptr, &err));
    return Model(m);
}

static Session new_session(const Model &model) {
    linnet_session *s;
    check(linnet_session_new(&s, model.get(), nullptr, &err));
    return Session(s);
}

struct Said {
    const char *role;
    std::string text;
};

// The ids of the last message, and of the answer's beginning.
static std::vector<int32_t> next_turn(const Model &model, const std::vector<Said> &said) {
    std::vector<linnet_message> messages;
    for (const Said &s : said)
        messages.push_back({s.role, s.text.c_str()});
    std::vector<int32_t> ids(1024);
    for (size_t n;; ids.resize(n)) {
        check(linnet_chat_continue(model.get(), nullptr, messages.data(), messages.size(),
                                   messages.size() - 1, true, ids.data(), ids.size(), &n, &err));
        if (n > ids.size()) continue; // again, with room for all
        ids.resize(n);
        return ids;
    }
}

static std::string answer(const Session &session) {
    linnet_generate_options how = LINNET_GENERATE_DEFAULT;
    how.feed_end = true; // the answer's end token: the next turn goes on behind it
    std::string all;
    auto show = [](void *user, const char *text, size_t bytes) {
        static_cast<std::string *>(user)->append(text, bytes);
        std::cout.write(text, static_cast<std::streamsize>(bytes)).flush();
        return std::cout.good();
    };
    check(linnet_generate(session.get(), &how, show, &all, nullptr, &err));
    return all;
}

int main(int argc, char **argv) try {
    if (argc != 2) throw std::invalid_argument("usage: chat MODEL.gguf");
    Model model = open_model(argv[1]);
    Session session = new_session(model); // freed before the model
    std::vector<Said> said;
    for (std::string line; std::cerr << "> " && std::getline(std::cin, line);) {
        said.push_back({"user", line});
        std::vector<int32_t> ids = next_turn(model, said);
        check(linnet_feed(session.get(), ids.data(), ids.size(), LINNET_LOGITS_LAST, &err));
        said.push_back({"assistant", answer(session)});
        std::cout << std::endl;
    }
} catch (const std::exception &e) {
    std::cerr << "chat: " << e.what() << "\n";
    return 1;
}

"""What `make install` leaves, used as a stranger would: python3 -m unittest tests.test_install.

Everything is installed with PREFIX=/opt/linnet into a staging folder and used from there, so
pkg-config's and CMake's files must tell where they lie, not where they were meant to."""
import os
import re
import shutil
import subprocess
import tempfile
import textwrap
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHAT = os.path.join(ROOT, "tests", "data", "cli", "chat.gguf")
TALK = "Hi\nok\n"  # the first answer ends before the context does
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
QUIET = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}


def run(*words, **options):
    options.setdefault("env", QUIET)
    return subprocess.run(words, capture_output=True, text=True, **options)


def write(path, text):
    with open(path, "w") as f:
        f.write(textwrap.dedent(text))


def read(path):
    with open(path) as f:
        return f.read()


def make(*words):
    return run("make", "-s", "-C", ROOT, "NVCC=", *words)


def header_functions(include):
    """The functions that the public headers declare, as the compiler sees them."""
    names = set()
    for header in os.listdir(include):
        seen = run("cc", "-E", "-P", os.path.join(include, header)).stdout
        names |= set(re.findall(r"\b(linnet_\w+)\(", seen))
    return names


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stage = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.stage)
        libdir = "/opt/linnet/lib/" + run("cc", "-print-multiarch").stdout.strip()
        cls.places = ["PREFIX=/opt/linnet", "LIBDIR=" + libdir, "DESTDIR=" + cls.stage]
        done = make("install", *cls.places)
        assert done.returncode == 0, done.stdout + done.stderr
        cls.prefix = cls.stage + "/opt/linnet"
        cls.lib, cls.include = cls.stage + libdir, cls.prefix + "/include"
        cls.env = dict(QUIET, PKG_CONFIG_PATH=cls.lib + "/pkgconfig", LD_LIBRARY_PATH=cls.lib)
        cls.version = re.search(r'LINNET_VERSION "(.*)"', read(ROOT + "/linnet.h"))[1]

    def setUp(self):
        self.work = tempfile.mkdtemp(dir=self.stage)

    def good(self, *words, **options):
        options.setdefault("env", self.env)
        options.setdefault("cwd", self.work)
        done = run(*words, **options)
        self.assertEqual(done.returncode, 0, f"{words}\n{done.stdout}{done.stderr}")
        return done.stdout

    def need(self, program, package=None):
        if not shutil.which(program):
            self.skipTest(f"{program} is not installed (Debian: {package or program})")

    def flags(self, *words, env=None):
        return self.good("pkg-config", *words, "--cflags", "--libs", "linnet", env=env or self.env).split()

    def reference(self):
        return self.good(self.prefix + "/bin/linnet", "chat", CHAT, "--quiet", input=TALK)

    # ---- the library itself

    def test_exports_what_the_headers_declare(self):
        defined = self.good("nm", "-D", "--defined-only", self.lib + "/liblinnet.so").split("\n")
        ours = {line.split()[-1] for line in defined if line and line.split()[1] != "A"}
        declared = header_functions(self.include)
        self.assertIn("linnet_model_open", declared)
        self.assertEqual(ours, {f"{name}@@LINNET_0" for name in declared})
        wanted = self.good("nm", "-D", "--undefined-only", self.lib + "/liblinnet.so")
        self.assertNotIn("linnet", wanted)

    def test_is_made_as_a_system_library(self):
        dynamic = self.good("readelf", "-dW", self.lib + "/liblinnet.so")
        self.assertIn(f"[liblinnet.so.{self.version.split('.')[0]}]", dynamic)
        self.assertRegex(dynamic, r"FLAGS_1.*NOW")
        self.assertNotIn("TEXTREL", dynamic)
        self.assertNotRegex(dynamic, "R(UN)?PATH")
        segments = self.good("readelf", "-lW", self.lib + "/liblinnet.so")
        self.assertIn("GNU_RELRO", segments)
        self.assertRegex(segments, r"GNU_STACK .* RW +0x")
        self.assertEqual(os.readlink(self.lib + "/liblinnet.so"), "liblinnet.so.0")
        self.assertEqual(os.readlink(self.lib + "/liblinnet.so.0"), "liblinnet.so." + self.version)

    def test_can_be_closed_and_opened_again(self):
        write(self.work + "/a.c", """
            #include <dlfcn.h>
            #include <linnet.h>
            #include <stdio.h>
            #define GET(name) __typeof__(&name) name##_ = (__typeof__(&name))dlsym(lib, #name)
            int main(int argc, char **argv) {
                for (int i = 0; i < 20; i++) {
                    void *lib = dlopen("liblinnet.so.0", RTLD_NOW | RTLD_LOCAL);
                    if (!lib) return puts(dlerror()), 1;
                    GET(linnet_model_open); GET(linnet_model_close); GET(linnet_session_new);
                    GET(linnet_session_free); GET(linnet_feed);
                    linnet_model_options o = {.threads = 3};
                    linnet_model *m; linnet_session *s; linnet_error err; int32_t ids[40] = {0};
                    if (linnet_model_open_(&m, argv[argc - 1], &o, &err) ||
                        linnet_session_new_(&s, m, NULL, &err) ||
                        linnet_feed_(s, ids, 40, LINNET_LOGITS_LAST, &err)) return puts(err.text), 1;
                    linnet_session_free_(s);
                    linnet_model_close_(m);
                    dlclose(lib);
                }
                return 0;
            }""")
        self.good("cc", "a.c", "-I" + self.include, "-o", "a")
        self.good("./a", CHAT)

    def test_header_is_short(self):
        with open(os.path.join(self.include, "linnet.h")) as f:
            self.assertLessEqual(len(f.readlines()), 250)

    def test_header_is_plain_c_and_cpp(self):
        for header in os.listdir(self.include):
            for compiler, language, standards in (("cc", "c", ["c99", "c11"]), ("clang", "c", ["c99", "c11"]),
                                                  ("c++", "c++", ["c++11", "c++20"]),
                                                  ("clang++", "c++", ["c++11", "c++20"])):
                if shutil.which(compiler):
                    for standard in standards:
                        self.good(compiler, "-std=" + standard, *WARNINGS, "-x", language, "-fsyntax-only",
                                  os.path.join(self.include, header))

    # ---- programs on it

    def test_pkg_config_knows_the_version(self):
        self.assertEqual(self.good("pkg-config", "--modversion", "linnet").strip(), self.version)

    def build_examples(self, flags):
        self.good("cc", *WARNINGS, ROOT + "/examples/chat.c", *flags, "-o", "chat_c")
        self.good("c++", *WARNINGS, "-std=c++17", ROOT + "/examples/chat.cpp", *flags, "-o", "chat_cpp")
        self.good("cc", *WARNINGS, ROOT + "/examples/three_answers.c", *flags, "-o", "three")

    def check_examples(self, env):
        said = self.reference()
        self.assertGreater(said.count("\n"), 1)
        for program in ("./chat_c", "./chat_cpp"):
            self.assertEqual(self.good(program, CHAT, input=TALK, env=env), said)
        three = self.good("./three", CHAT, "Hi", env=env)
        answers = re.match(r"(?s)1: (.*)\n2: (.*)\n3: (.*)\n$", three).groups()
        self.assertEqual(len(set(answers)), 3)
        for seed, answer in enumerate(answers, 1):  # as if each had been asked alone
            alone = self.good(self.prefix + "/bin/linnet", "chat", CHAT, "--quiet", "-n", "100", "--temp", "0.8",
                              "--seed", str(seed), input="Hi\n")
            self.assertEqual(answer + "\n", alone)
        failed = run("./chat_c", "none.gguf", cwd=self.work, env=env)
        self.assertEqual((failed.returncode, failed.stderr.count("\n")), (1, 1))
        self.assertIn("none.gguf", failed.stderr)

    def test_examples_on_the_shared_library(self):
        self.build_examples(self.flags())
        self.assertIn("liblinnet.so.0", self.good("readelf", "-d", "chat_c"))
        self.check_examples(self.env)

    def test_examples_on_the_archive(self):
        shutil.copytree(self.prefix, self.work + "/static", symlinks=True)
        lib = self.work + "/static" + self.lib[len(self.prefix):]
        for name in os.listdir(lib):
            if ".so" in name:
                os.remove(os.path.join(lib, name))
        env = dict(QUIET, PKG_CONFIG_PATH=lib + "/pkgconfig")
        self.build_examples(self.flags("--static", env=env))
        self.assertNotIn("liblinnet", self.good("readelf", "-d", "chat_c"))
        self.check_examples(QUIET)

    def test_cmake_finds_it(self):
        self.need("cmake")
        write(self.work + "/CMakeLists.txt", f"""
            cmake_minimum_required(VERSION 3.16)
            project(chat C CXX)
            find_package(linnet 0.1 REQUIRED)
            find_package(linnet 0.1 REQUIRED)
            add_executable(chat_c {ROOT}/examples/chat.c)
            target_link_libraries(chat_c linnet::linnet)
            add_executable(chat_cpp {ROOT}/examples/chat.cpp)
            target_compile_features(chat_cpp PRIVATE cxx_std_17)
            target_link_libraries(chat_cpp linnet::linnet)
            add_executable(chat_static {ROOT}/examples/chat.c)
            target_link_libraries(chat_static linnet::linnet_static)
            """)
        env = dict(QUIET, LC_ALL="C")
        self.good("cmake", "-S", ".", "-B", "out", "-DCMAKE_PREFIX_PATH=" + self.prefix, env=env)
        self.good("cmake", "--build", "out", env=env)
        said = self.reference()
        for program in ("chat_c", "chat_cpp", "chat_static"):
            self.assertEqual(self.good("out/" + program, CHAT, input=TALK, env=env), said)
        self.assertNotIn("liblinnet", self.good("readelf", "-d", "out/chat_static"))
        for wanted in ("0.2", "1.0", "0.0.9"):
            text = read(self.work + "/CMakeLists.txt").replace("linnet 0.1", "linnet " + wanted)
            os.makedirs(self.work + "/" + wanted)
            write(f"{self.work}/{wanted}/CMakeLists.txt", text)
            done = run("cmake", "-S", wanted, "-B", "out" + wanted, "-DCMAKE_PREFIX_PATH=" + self.prefix,
                       cwd=self.work, env=env)
            self.assertNotEqual(done.returncode, 0, wanted)
            self.assertIn("compatible", done.stderr)

    # ---- the rest of the tree

    def test_manual_page(self):
        page = self.prefix + "/share/man/man1/linnet.1"
        text = read(page)
        commands = self.good(self.prefix + "/bin/linnet", "--help")
        for command in re.findall(r"(?m)^  (\w+) ", commands):
            self.assertTrue(f".SS linnet {command} " in text, command)
            flags = self.good(self.prefix + "/bin/linnet", command, "--help")
            for flag in re.findall(r"(?m)^  (-[\w-]+)", flags):
                self.assertTrue(flag == "-h" or "\\fB" + flag.replace("-", "\\-") + "\\fR" in text, flag)
        if shutil.which("groff"):
            done = run("groff", "-man", "-ww", "-Tutf8", page)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.need("man", "man-db")
        done = run("man", "-l", "--warnings=w", page, env=dict(QUIET, MANWIDTH="80", LC_ALL="C.UTF-8"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("EXIT STATUS", done.stdout)

    def complete(self, *words):
        script = self.prefix + "/share/bash-completion/completions/linnet"
        return self.good("bash", "-c", 'set -u; source "$0"; complete -p linnet >/dev/null; COMP_WORDS=("$@"); '
                         'COMP_CWORD=$(($# - 1)); _linnet; printf "%s\\n" "${COMPREPLY[@]}"', script, "linnet",
                         *words, cwd=ROOT).split()

    def test_completion_in_bash(self):
        self.assertLessEqual({"run", "chat", "bench", "completion", "--help"}, set(self.complete("")))
        self.assertEqual(self.complete("ru"), ["run"])
        self.assertEqual(self.complete("run", "--te"), ["--temp"])
        self.assertEqual(self.complete("run", "--kv", ""), ["f32", "f16", "q8_0"])
        self.assertEqual(self.complete("run", "--kv", "=", "q"), ["q8_0"])
        self.assertEqual(self.complete("run", "tests/data/cli/c"), ["tests/data/cli/chat.gguf"])
        self.assertEqual(self.complete("run", "-f", "linnet."), ["linnet.h"])
        self.assertEqual(self.complete("run", "-n", ""), [])
        self.assertEqual(self.complete("completion", "z"), ["zsh"])

    def test_completion_in_zsh(self):
        self.need("zsh")
        script = self.prefix + "/share/zsh/site-functions/_linnet"
        shown = self.good("zsh", "-f", "-c", f'autoload -U compinit; compinit -u -D; source "{script}"; '
                          "echo $_comps[linnet]")
        self.assertEqual(shown.strip(), "_linnet")

    def test_completion_in_fish(self):
        self.need("fish")
        script = self.prefix + "/share/fish/vendor_completions.d/linnet.fish"
        env = dict(self.env, HOME=self.work)
        shown = self.good("fish", "-c", f'source {script}; complete -C "linnet run --kv "', env=env)
        self.assertEqual({line.split()[0] for line in shown.splitlines()}, {"f32", "f16", "q8_0"})

    def test_cuda_library_is_found(self):
        """The emulated one stands for it: beside the library, and from a program however it was called."""
        done = make("-j2", "build/emu/liblinnet_cuda.so")
        self.assertEqual(done.returncode, 0, done.stderr)
        prefix = self.work + "/usr"
        done = make("install", "PREFIX=" + prefix)
        self.assertEqual(done.returncode, 0, done.stderr)
        shutil.copy(ROOT + "/build/emu/liblinnet_cuda.so", prefix + "/lib/liblinnet_cuda.so")
        os.makedirs(self.work + "/elsewhere")
        os.symlink(prefix + "/bin/linnet", self.work + "/elsewhere/linnet")
        words = ["linnet", "run", CHAT, "-p", "Hi", "-n", "2", "--backend", "cuda"]
        for path in (prefix + "/bin", self.work + "/elsewhere"):
            self.good("bash", "-c", '"$@"', "-", *words, env=dict(QUIET, PATH=path + ":" + QUIET["PATH"]))
        write(self.work + "/a.c", """
            #include <linnet.h>
            #include <stdio.h>
            int main(int argc, char **argv) {
                linnet_error err;
                linnet_model *m;
                linnet_model_options o = {.backend = "cuda"};
                if (linnet_model_open(&m, argv[argc - 1], &o, &err)) return puts(err.text), 1;
                puts(linnet_model_get_info(m)->backend);
                linnet_model_close(m);
                return 0;
            }""")
        self.good("cc", "a.c", f"-I{prefix}/include", f"-L{prefix}/lib", "-llinnet", "-o", "a")
        env = dict(QUIET, LD_LIBRARY_PATH=prefix + "/lib")
        self.assertIn("cuda:0", self.good("./a", CHAT, env=env))
        os.remove(prefix + "/lib/liblinnet_cuda.so")
        done = run("./a", CHAT, cwd=self.work, env=env)
        self.assertEqual(done.returncode, 1)
        self.assertIn("no CUDA backend", done.stdout)

    def test_uninstall_takes_all_away(self):
        prefix = self.work + "/usr"
        done = make("install", "PREFIX=" + prefix)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(os.path.exists(prefix + "/include/linnet.h"))
        done = make("uninstall", "PREFIX=" + prefix)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([f for _, _, files in os.walk(prefix) for f in files], [])
        self.assertFalse(os.path.exists(prefix + "/lib/cmake/linnet"))

    def test_refuses_a_relative_prefix(self):
        done = make("install", "PREFIX=here")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("PREFIX and LIBDIR must be whole paths, found 'here'", done.stderr)


if __name__ == "__main__":
    unittest.main()

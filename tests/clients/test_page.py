"""The web page of `linnet serve` in headless Chromium: real answers of a real server. The models say
what scripted.py was told, so that what the page shows can be compared."""
import glob
import os
import re
import socket
import tempfile
import unittest
import urllib.request

from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.keys import Keys

from tests.clients.browser import Browser
from tests.clients.scripted import write
from tests.serving import ROOT, Serving

# Markdown, and attempts at more than that.
LONG = """Here are **two tips** for a *good* night:

1. **Keep hours.** Go to bed at the same time, also on `Sunday`.
2. Dim the evening.
   - a lamp is enough
   - paper has no notifications

### A small program

```python
def sheep(n):  # <b>not bold</b>
    while True:
        yield n * 2 ** 3
```

<img src=x onerror="window.hacked=1"><script>window.hacked=2</script> and [a link](javascript:window.hacked=3), ünïcode 🐦 — done.
"""
SHORT = "A small brown bird sang on the wire, its breast like the end of a fire."
ENDLESS = "tick tock "


def metric(server, name):
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        return float(re.search(rf"^{name} (\S+)$", answer.read().decode(), re.M)[1])


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.quit)
        cls.servers = {}

    @classmethod
    def serving(cls, name, *flags, **model):
        """A server of its own for each kind of model, started when the first test wants it."""
        if name not in cls.servers:
            path = os.path.join(cls.folder.name, f"{name}.gguf")
            write(path, **model)
            cls.servers[name] = Serving(path, *flags)
            cls.addClassCleanup(cls.servers[name].__exit__)
        return cls.servers[name]

    @classmethod
    def talker(cls):
        return cls.serving("talker", answers=[LONG, SHORT])

    @classmethod
    def ticker(cls):
        """Never ends, some hundred tokens a second."""
        return cls.serving("ticker", "--slots", "1", "--max-queue", "1", answers=[ENDLESS * 3],
                           endless=True, feed=4096, context=1 << 20)

    def setUp(self):
        self.b = self.browser
        # Without motion what is asked is there at once, not half faded in.
        self.b.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
        self.b.whole_window()
        self.b.console()

    def tearDown(self):
        """Whatever a test did: an empty console, but for what it read itself, and no request elsewhere."""
        lines = [line for line in self.b.console() if line.startswith(("SEVERE", "WARNING"))]
        self.assertEqual(lines, [])
        origin, names = self.b.js("return [location.origin, performance.getEntriesByType('resource').map((e) => e.name)]")
        self.assertEqual([n for n in names if not n.startswith(origin + "/")], [])

    def see(self, look, wanted, *more):
        """The page shows it, or will in a moment: what a click does may come with a later event."""
        def seen():
            try:
                return look() == wanted
            except (IndexError, NoSuchElementException):
                return False
        try:
            self.b.wait(seen, "it", 10)
        except AssertionError:
            pass
        self.assertEqual(look(), wanted, *more)

    def answer(self, wanted):
        """Answers anew until it is `wanted`: which of the two it is depends on the seed."""
        for _ in range(40):
            if self.b.answers()[-1].startswith(wanted):
                return
            self.b.button("Another answer")
            self.b.settle()
        self.fail(f"no answer begins with {wanted!r}: {self.b.answers()}")

    # ---- conversations ---------------------------------------------------------------------------

    def test_text_appears_while_it_is_written(self):
        b = self.b
        b.open(self.ticker().url)
        b.say("Hello", settle=False)
        seen = set()
        b.wait(lambda: seen.add(len("".join(b.answers()))) or len(seen) > 4, "five lengths of the answer")
        line = b.wait(lambda: re.search(r"\d tokens · (\d+) tok/s · first after .* · state about [\d.]+ [kM]B",
                                        b.text(".progress")[-1]), "the live figures")
        self.assertGreater(int(line[1]), 1)
        b.press(Keys.ESCAPE)
        b.settle()
        self.see(lambda: b.answers()[0].startswith("tick tock tick tock"), True)

    def test_an_answer_goes_on_while_another_conversation_is_shown(self):
        b = self.b
        b.open(self.ticker().url)
        b.say("Hello", settle=False)
        b.wait(lambda: len("".join(b.answers())) > 20, "some text")
        b.button("New conversation")
        self.see(lambda: (b.said(), b.answering()), ([], False))
        self.see(lambda: b.titles(), ["Hello writing"])
        written = self.written()
        b.wait(lambda: self.written() > written + 100, "more text")
        b.one("#list a").click()
        self.see(lambda: b.answering(), True)
        self.assertGreater(len(b.answers()[0]), 100)
        b.one("#send").click()
        b.settle()
        self.see(lambda: b.titles(), ["Hello"])

    def written(self):
        """Tokens that the server has sampled."""
        return metric(self.ticker(), "linnet_sampled_tokens_total")

    def test_a_conversation(self):
        b = self.b
        b.open(self.talker().url)
        b.say("Two tips, please.\nBriefly.")
        self.answer("Here are two tips")
        b.say("And a poem.")
        self.answer("A small")
        self.see(lambda: b.said(), ["Two tips, please.\nBriefly.", "And a poem."])
        self.see(lambda: b.answers()[1], SHORT)
        self.see(lambda: b.titles(), ["Two tips, please."])
        for line in b.figures():
            self.assertRegex(line, r"^[\d,]+ tokens · [\d.,]+ tok/s · first after [\d.]+ m?s · "
                                   r"[\d,]+ of [\d,]+ reused · state [\d.]+ [kM]B$")
        # The second turn computes what is new, not what the first left.
        reused, prompt = map(int, re.search(r"(\d+) of (\d+) reused", b.figures()[1]).groups())
        self.assertGreater(reused, 0.7 * prompt)
        # The picture: a dot for each turn, and the words.
        self.see(lambda: len(b.all("#chart .turn")), 2)
        self.assertRegex(b.text("#chart figcaption")[0], "Every token adds its keys and values, in pages of 64")
        b.one("#messages .answer summary").click()
        self.assertIn("Seed", b.text("#messages .figures dl")[0])

    def test_markdown_is_rendered_and_what_is_hostile_stays_text(self):
        b = self.b
        b.open(self.talker().url)
        b.say('<img src=y onerror="window.hacked=4"><b>me</b> **no markdown**')
        self.answer("Here are two tips")
        self.see(lambda: b.said(), ['<img src=y onerror="window.hacked=4"><b>me</b> **no markdown**'])
        text = "#messages .answer .text"
        self.see(lambda: b.text(f"{text} > p:first-child strong"), ["two tips"])
        self.see(lambda: b.text(f"{text} > ol > li > ul > li"), ["a lamp is enough", "paper has no notifications"])
        self.see(lambda: b.text(f"{text} h5"), ["A small program"])
        self.see(lambda: b.text(f"{text} pre code"),
                         ["def sheep(n):  # <b>not bold</b>\n    while True:\n        yield n * 2 ** 3"])
        self.assertIn('<img src=x onerror="window.hacked=1"><script>window.hacked=2</script> and '
                      "[a link](javascript:window.hacked=3), ünïcode 🐦 — done.", b.answers()[0])
        self.see(lambda: b.all("#messages :is(img, script, a, b, iframe, object, style)"), [])
        self.assertIsNone(b.js("return window.hacked ?? null"))
        # Another tab, or a reload: nothing of it is read as markup from the storage either.
        b.driver.refresh()
        b.wait(lambda: b.said(), "the conversation")
        self.see(lambda: b.all(":is(#messages, #list) :is(img, script, b)"), [])

    def test_the_code_is_copied(self):
        b = self.b
        b.open(self.talker().url)
        b.driver.execute_cdp_cmd("Browser.grantPermissions", {
            "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": self.talker().url})
        b.say("Code?")
        self.answer("Here are two tips")
        b.one(".code button").click()
        b.wait(lambda: "Copied" in b.text(".code button"), "the button says so")
        copied = b.js_async("return navigator.clipboard.readText()")
        self.assertEqual(copied, "def sheep(n):  # <b>not bold</b>\n    while True:\n        yield n * 2 ** 3")

    def test_an_edit_makes_a_sibling(self):
        b = self.b
        b.open(self.talker().url)
        b.say("first")
        b.say("second")
        before = b.answers()
        b.one("#input").send_keys(Keys.ARROW_UP)  # the last message
        b.press(" changed", Keys.ENTER)
        b.settle()
        self.see(lambda: b.said(), ["first", "second changed"])
        self.see(lambda: b.text(".user .count"), ["2/2"])
        b.all(".user button[aria-label^=Previous]")[-1].click()
        self.see(lambda: (b.said(), b.answers()), (["first", "second"], before))
        self.see(lambda: b.text(".user .count"), ["1/2"])
        # The focus stays on the arrow, so the keyboard can go on.
        b.press(Keys.TAB, Keys.ENTER)
        self.see(lambda: b.said(), ["first", "second changed"])
        # An edit of the first message leaves what followed it behind the arrows.
        b.button("Edit", ".user:first-child")
        b.press("!", Keys.ENTER)
        b.settle()
        self.see(lambda: b.said(), ["first!"])
        b.one(".user button[aria-label^=Previous]").click()
        self.see(lambda: b.said(), ["first", "second changed"])
        # Escape leaves an edit without a trace.
        b.button("Edit", ".user:first-child")
        b.press("nothing", Keys.ESCAPE)
        self.see(lambda: b.said(), ["first", "second changed"])
        self.see(lambda: b.text(".user .count"), ["1/2", "2/2"])

    def test_another_answer_is_a_sibling(self):
        b = self.b
        b.open(self.talker().url)
        b.say("Say something.")
        first = b.answers()[0]
        self.answer("A small" if first.startswith("Here") else "Here")
        count = int(b.text(".answer .count")[0].split("/")[1])
        self.assertGreaterEqual(count, 2)
        for _ in range(count - 1):
            b.one(".answer button[aria-label^=Previous]").click()
        self.see(lambda: b.answers(), [first])
        # The arrow at the end does nothing, and is there for Tab all the same.
        self.see(lambda: b.one(".answer button[aria-label^=Previous]").get_attribute("aria-disabled"), "true")

    def test_a_fork_goes_its_own_way(self):
        b = self.b
        b.open(self.talker().url)
        b.say("one")
        b.say("two")
        b.button("Fork from here", ".answer:nth-child(2)")
        self.see(lambda: b.said(), ["one"])
        self.see(lambda: b.titles(), ["one (fork)", "one"])
        b.say("three")
        self.see(lambda: b.said(), ["one", "three"])
        reused, prompt = map(int, re.search(r"(\d+) of (\d+) reused", b.figures()[1]).groups())
        self.assertGreater(reused, 0.5 * prompt)
        b.all("#list a")[1].click()
        self.see(lambda: b.said(), ["one", "two"])
        b.button("Fork", "#list")  # of everything
        self.see(lambda: b.said(), ["one", "two"])
        self.see(lambda: len(b.titles()), 3)

    def test_rename_delete_and_undo(self):
        b = self.b
        b.open(self.talker().url)
        b.say("one")
        b.button("Rename", "#list")
        b.press(Keys.CONTROL + "a")
        b.press("<i>Tips</i>", Keys.ENTER)
        self.see(lambda: b.titles(), ["<i>Tips</i>"])
        self.see(lambda: b.driver.title, "<i>Tips</i> · linnet")
        b.button("New conversation")
        b.say("two")
        b.button("Delete", "#list")
        self.see(lambda: (b.titles(), b.said()), (["<i>Tips</i>"], []))
        b.button("Undo")
        self.see(lambda: (b.titles(), b.said()), (["two", "<i>Tips</i>"], ["two"]))
        b.button("Delete", "#list")
        b.driver.refresh()
        b.wait(lambda: b.titles() == ["<i>Tips</i>"], "the one that is left")

    def test_a_reload_finds_everything_again(self):
        b = self.b
        b.open(self.talker().url)
        b.say("one")
        b.say("two")
        b.one("#system").send_keys("Be brief.")
        b.button("Edit", ".user:nth-child(3)")
        b.press("!", Keys.ENTER)
        b.settle()
        b.one("#top_k").send_keys("40")
        b.one("#key").send_keys("secret")
        state = b.said(), b.answers(), b.titles(), b.text(".count"), b.figures()
        b.driver.refresh()
        b.wait(lambda: b.said(), "the conversation")
        self.see(lambda: (b.said(), b.answers(), b.titles(), b.text(".count"), b.figures()), state)
        self.assertEqual(b.js("return ['system', 'top_k', 'key'].map((id) => document.getElementById(id).value)"),
                         ["Be brief.", "40", "secret"])
        self.assertEqual(b.js("return Object.values(localStorage).filter((v) => v.includes('secret'))"), [])
        # And goes on: the server, asked with the same text, has not forgotten either.
        b.say("three")
        reused, prompt = map(int, re.search(r"(\d+) of (\d+) reused", b.figures()[-1]).groups())
        self.assertGreater(reused, 0.5 * prompt)

    def test_a_reload_in_the_middle_keeps_what_was_written(self):
        b = self.b
        b.open(self.ticker().url)
        b.say("Hello", settle=False)
        b.wait(lambda: len("".join(b.answers())) > 100, "some text")
        b.driver.refresh()
        b.wait(lambda: b.answers(), "the conversation")
        self.assertGreater(len(b.answers()[0]), 50)
        self.see(lambda: b.answering(), False)
        self.assertIn("broken off", b.figures()[0])
        b.wait(lambda: metric(self.ticker(), "linnet_slots_busy") == 0, "a free slot")

    # ---- the server's side -----------------------------------------------------------------------

    def test_stop_frees_the_slot_within_a_second(self):
        b, server = self.b, self.ticker()
        b.open(server.url)
        for stop in (lambda: b.press(Keys.ESCAPE), lambda: b.one("#send").click()):
            b.say("Hello", settle=False)
            b.wait(lambda: len(b.answers()[-1]) > 40, "some text")
            self.assertEqual(metric(server, "linnet_slots_busy"), 1)
            stop()
            b.wait(lambda: metric(server, "linnet_slots_busy") == 0, "a free slot", 1)
            b.settle()
            self.assertIn("stopped", b.figures()[-1])
        self.assertGreaterEqual(metric(server, "linnet_jobs_cancelled_total"), 2)
        b.one("#max_tokens").send_keys("5")
        b.say("Once more")  # and the conversation goes on
        self.assertRegex(b.figures()[-1], "^5 tokens .* cut$")

    def test_settings_reach_the_server(self):
        b = self.b
        b.open(self.talker().url)
        b.one("#stop").send_keys("tips")
        b.one("#seed").send_keys("7")
        b.say("Say")
        first = b.answers()[0]
        self.assertIn(first, ("Here are **two", "Here are two", SHORT))
        b.button("Another answer")  # the same seed: the same answer
        b.settle()
        self.see(lambda: b.answers()[0], first)
        b.one("#stop").clear()
        b.one("#temperature").clear()
        b.one("#temperature").send_keys("9")  # the server takes 0 to 2
        b.say("Again")
        self.see(lambda: b.said(), ["Say"])
        self.assertEqual(b.js("return document.activeElement.id"), "temperature")
        self.see(lambda: b.one("#input").get_attribute("value"), "Again")
        b.button("Back to the defaults")
        self.see(lambda: b.one("#temperature").get_attribute("value"), "0.7")
        b.one("#input").send_keys(Keys.ENTER)
        b.settle()
        self.see(lambda: len(b.answers()), 2)

    def test_a_linear_model_has_a_flat_picture(self):
        b = self.b
        b.open(self.serving("delta", answers=[SHORT], mixer="delta_net").url)
        b.say("one")
        b.say("two")
        heights = b.js("return [...document.querySelectorAll('#chart .turn')].map((e) => e.getAttribute('cy'))")
        self.assertEqual(len(heights), 2)
        self.assertEqual(len(set(heights)), 1)
        self.assertRegex(b.text("#chart figcaption")[0], "and it stays so. A softmax model of this shape would hold")
        self.see(lambda: len(b.all("#chart .softmax")), 1)

    def test_errors_are_sentences_and_can_be_tried_again(self):
        b = self.b
        keys = os.path.join(self.folder.name, "keys")
        with open(keys, "w") as f:
            f.write("open-sesame\n")
        server = self.serving("locked", "--api-key-file", keys, answers=[SHORT])
        b.open(server.url)
        b.wait(lambda: "The server wants an API key." in b.text("#notice p"), "the notice")
        b.say("Hello")
        self.see(lambda: b.text(".error p"), ["The server wants an API key."])
        b.button("Enter the key", "#messages")
        b.press("wrong")
        b.button("Try again", "#messages")
        b.settle()
        self.see(lambda: b.text(".error p"), ["The server does not accept this API key."])
        b.one("#key").clear()
        b.one("#key").send_keys("open-sesame")
        b.button("Try again", "#messages")
        b.settle()
        self.see(lambda: (b.answers(), b.text(".error")), ([SHORT], []))
        self.see(lambda: b.all(".count"), [])  # what failed left no sibling
        b.wait(lambda: b.text("#notice") == [""] and "locked" in b.text("#model")[0], "the model's name")
        self.assertTrue(all("401" in line for line in b.console()))  # Chromium's, one for each refusal

    def test_a_server_that_is_gone_or_busy(self):
        b = self.b
        path = os.path.join(self.folder.name, "leaving.gguf")
        write(path, [ENDLESS * 3], endless=True, feed=4096, context=1 << 20)
        with Serving(path, "--slots", "1", "--max-queue", "0", "--drain", "0") as server:
            b.open(server.url)
            with socket.create_connection(("127.0.0.1", server.port)) as other:  # takes the only slot
                body = b'{"model": "leaving", "prompt": "\\n", "stream": true, "max_tokens": 1000000}'
                other.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                              b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                b.wait(lambda: metric(server, "linnet_slots_busy") == 1, "a busy server")
                b.say("Hello")
                self.assertRegex(b.text(".error p")[0], r"^The server is busy: .+\. Try again in \d+ s\.$")
            b.wait(lambda: metric(server, "linnet_slots_busy") == 0, "a free server")
            b.button("Try again", "#messages")
            b.wait(lambda: len("".join(b.answers())) > 40, "some text")
            server.stop()
        b.settle()
        self.assertRegex(b.text(".error p")[0], r"^The (connection to the )?server .+\.$")
        self.see(lambda: b.answers()[0].startswith("tick tock"), True)  # what was written stays
        b.button("Try again", "#messages")
        b.settle()
        self.see(lambda: b.text(".error p"), ["The server cannot be reached."])
        b.console()  # Chromium writes a line for each of these

    # ---- what every page owes its readers --------------------------------------------------------

    def test_the_policy_holds(self):
        b = self.b
        b.open(self.talker().url)
        with urllib.request.urlopen(self.talker().url) as answer:
            policy = answer.headers["Content-Security-Policy"]
        for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
                     "frame-ancestors 'none'", "require-trusted-types-for 'script'"):
            self.assertIn(part, policy)
        self.assertNotIn("unsafe", policy)
        broken = b.js_async("""
            const seen = [];
            document.addEventListener("securitypolicyviolation", (e) => seen.push(e.effectiveDirective));
            new Image().src = "http://127.0.0.1:9/x.png";
            await fetch("http://127.0.0.1:9/").catch(() => {});
            const style = document.createElement("style");
            style.textContent = "body { display: none }";
            document.head.append(style);
            const script = document.createElement("script");
            try { script.textContent = "window.hacked = 1"; document.head.append(script); } catch { seen.push("typed script"); }
            try { document.body.innerHTML = "<p>gone"; } catch { seen.push("typed html"); }
            await new Promise((resolve) => setTimeout(resolve, 300));
            style.remove();
            performance.clearResourceTimings(); // of what was tried here
            return [seen, window.hacked ?? null, getComputedStyle(document.body).display];""")
        for what in ("img-src", "connect-src", "style-src-elem", "typed script", "typed html"):
            self.assertIn(what, broken[0])
        self.assertIsNone(broken[1])
        self.assertEqual(broken[2], "grid")
        self.assertTrue(b.console())  # the violations

    def test_the_page_is_small_and_its_own(self):
        files = glob.glob(os.path.join(ROOT, "server", "page", "*"))
        self.assertLess(sum(map(os.path.getsize, files)), 80_000)
        for path in files:
            with open(path, encoding="utf-8") as f:
                text = f.read()
            outside = re.findall(r"https?://[^\s\"'`)]+", text)
            self.assertEqual([u for u in outside if u != "http://www.w3.org/2000/svg"], [], path)
            self.assertNotRegex(text, r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(| on\w+=\"", path)

    def test_narrow_screens(self):
        b = self.b
        b.open(self.talker().url)
        b.screen(360, 720, touch=True)
        b.say("a" * 300)
        self.answer("Here are two tips")

        def fits(where):
            self.assertEqual(b.js("return [innerWidth, document.documentElement.scrollWidth]"), [360, 360], where)
            wide = b.js("""return [...document.querySelectorAll("body *")].filter((e) => {
                const r = e.getBoundingClientRect();
                return r.width && (r.right > 361 || r.left < -1) && !e.closest("pre, .hidden, .skip");
            }).map((e) => e.outerHTML.slice(0, 80))""")
            self.assertEqual(wide, [], where)

        fits("conversation")
        self.see(lambda: b.one("#side").is_displayed(), False)
        b.button("Menu")
        fits("list")
        self.see(lambda: b.one("#side").is_displayed(), True)
        self.assertTrue(b.js("return document.getElementById('side').contains(document.activeElement)"))
        b.press(Keys.ESCAPE)
        self.see(lambda: b.one("#side").is_displayed(), False)
        self.assertEqual(b.js("return document.activeElement.id"), "side-open")
        b.button("Settings")
        fits("settings")
        # Tab stays within the drawer that lies over the page.
        for _ in range(30):
            b.press(Keys.TAB)
            self.assertTrue(b.js("return document.activeElement === document.body || "
                                 "!!document.activeElement.closest('#panel, .skip')"))
        b.one("#panel-close").click()
        b.button("Menu")
        b.button("New conversation")
        self.see(lambda: b.one("#side").is_displayed(), False)
        b.screen(820, 1100)
        self.assertEqual(b.js("return document.documentElement.scrollWidth <= innerWidth"), True)

    CONTRAST = """
        const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
        const parse = (c) => c.match(/[\\d.]+/g).map(Number);
        const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
        const out = [];
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        for (let t; (t = walk.nextNode());) {
            const e = t.parentElement, style = getComputedStyle(e);
            if (!t.data.trim() || !e.getClientRects().length || e.closest(".hidden, .skip, noscript, [aria-disabled=true]")) continue;
            const ink = parse(e.namespaceURI.endsWith("svg") ? style.fill : style.color);
            const [a, b] = [luminance(ink), luminance(ground(e))].sort((x, y) => y - x);
            const ratio = (a + 0.05) / (b + 0.05);
            if (ratio < 4.5) out.push([t.data.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
        }
        return out;"""

    def test_light_and_dark_can_be_read(self):
        b = self.b
        b.open(self.talker().url)
        b.say("Hello")
        self.answer("Here are two tips")
        b.one(".figures summary").click()
        grounds = []
        for scheme in ("light", "dark"):
            b.media(prefers_color_scheme=scheme)
            grounds.append(b.js("return getComputedStyle(document.body).backgroundColor"))
            self.assertEqual(b.js(self.CONTRAST), [], scheme)
        light, dark = (sum(map(int, re.findall(r"\d+", g))) for g in grounds)
        self.assertGreater(light, 600)
        self.assertLess(dark, 150)

    def test_the_keyboard_reaches_everything(self):
        b = self.b
        b.open(self.talker().url)
        b.say("Hello")
        self.answer("Here are two tips")
        b.js("document.activeElement.blur()")
        wanted = set(b.js("""return [...document.querySelectorAll("button, a, input, textarea, summary, pre")]
            .filter((e) => e.getClientRects().length).map((e, i) => e.dataset.n = String(i))"""))
        seen, bare = set(), []
        for _ in range(2 * len(wanted) + 5):
            b.press(Keys.TAB)
            n, outline = b.js("""const e = document.activeElement, s = getComputedStyle(e);
                const ring = e.id === "input" ? getComputedStyle(e.parentElement).boxShadow : s.outlineStyle;
                return [e.dataset.n ?? null, ring]""")
            if n is not None:
                seen.add(n)
                if outline == "none":
                    bare.append(n)
        self.assertEqual(wanted - seen, set())
        self.assertEqual(bare, [])

    def test_names_and_live_text(self):
        b = self.b
        b.open(self.talker().url)
        b.js("""window.heard = [];
            new MutationObserver((all) => all.forEach((m) => m.addedNodes.forEach((n) => heard.push(n.textContent))))
                .observe(document.getElementById("live"), {childList: true});""")
        b.say("Hello")
        if not b.answers()[0].startswith("Here"):
            b.js("heard.length = 0")
            self.answer("Here are two tips")
        heard = b.js("return heard")
        self.assertIn("Answering.", heard)
        # Blocks, not tokens: some 100 tokens in at most seven pieces, whole.
        heard = heard[len(heard) - 1 - heard[::-1].index("Answering."):]
        self.assertLessEqual(len(heard), 8)
        self.assertIn("Here are two tips for a good night:", heard)
        nameless = b.js("""return [...document.querySelectorAll("button, a, input, textarea")].filter((e) =>
            !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim())).map((e) => e.outerHTML)""")
        self.assertEqual(nameless, [])
        ids = b.js("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
        self.assertEqual(len(ids), len(set(ids)))
        self.assertEqual(b.js("return document.documentElement.lang"), "en")

    def test_motion_only_where_it_is_liked(self):
        b = self.b
        b.open(self.ticker().url)
        b.say("Hello", settle=False)
        b.wait(lambda: len("".join(b.answers())) > 20, "some text")
        moving = "return getComputedStyle(document.querySelector('[aria-busy] .text > :last-child'), '::after').animationName"
        b.media(prefers_reduced_motion="no-preference")
        self.assertEqual(b.js(moving), "breathe")
        b.media(prefers_reduced_motion="reduce")
        self.assertEqual(b.js(moving), "none")
        b.one("#input").send_keys(Keys.ESCAPE)
        b.settle()

    def test_a_storage_that_is_full_damaged_or_foreign(self):
        b = self.b
        b.open(self.talker().url)
        b.js("""localStorage["linnet.conversation.x"] = "{";
            localStorage["linnet.conversation.y"] = JSON.stringify({version: 1, id: "y", title: "loop", system: "",
                nodes: {root: {id: "root", content: "", children: ["a"], pick: 0},
                        a: {id: "a", parent: "root", role: "user", content: "x", children: ["root"], pick: 0}}});
            localStorage["linnet.settings"] = "[3]"; localStorage["other"] = "kept";""")
        b.driver.refresh()
        b.wait(lambda: b.text("#model")[0], "the model's name")
        self.see(lambda: b.titles(), [])
        b.js("""for (let n = 1 << 22, i = 0; n > 16; i++) {
            try { localStorage["fill" + i] = "x".repeat(n); } catch { n >>= 1; } }""")
        b.say("Hello")
        self.see(lambda: len(b.answers()), 1)
        self.assertRegex(b.text("#notice")[0], "^This browser has no room left for conversations")
        self.assertEqual(b.js("return localStorage.other"), "kept")

    def test_two_tabs_see_each_other(self):
        b = self.b
        b.open(self.talker().url)
        first = b.driver.current_window_handle
        b.driver.switch_to.new_window("tab")
        try:
            b.open(self.talker().url, empty=False)
            b.say("from the other tab")
        finally:
            b.driver.close()
            b.driver.switch_to.window(first)
        b.wait(lambda: b.titles() == ["from the other tab"], "the other tab's conversation")
        b.one("#list a").click()
        self.see(lambda: b.said(), ["from the other tab"])

    MARKDOWN = [
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("# A #\n## B", "<h3>A</h3><h4>B</h4>"),
        ("a *b* **c** ***d*** _e_ __f__ ~~g~~ `h*i*`",
         "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <em>e</em> <strong>f</strong> <del>g</del> <code>h*i*</code></p>"),
        ("2 * 3 * 4, snake_case_name, a ** b, \\*not\\*, **open", "<p>2 * 3 * 4, snake_case_name, a ** b, *not*, **open</p>"),
        ("**bold *it* x**, ``a`b``, ` `` `", "<p><strong>bold <em>it</em> x</strong>, <code>a`b</code>, <code>``</code></p>"),
        ("- a\n- b\n  - c\n\n    d\n- e", "<ul><li>a</li><li>b<ul><li><p>c</p><p>d</p></li></ul></li><li>e</li></ul>"),
        ("1. a\n\n2. b\n\nc", "<ol><li>a</li><li>b</li></ol><p>c</p>"),
        ("3) a\n4) b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("a\n- b\n1. c", "<p>a</p><ul><li>b</li></ul><ol><li>c</li></ol>"),
        ("in\n1986. was", "<p>in\n1986. was</p>"),
        ("> a\n> > b\n\n---\n***", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><hr><hr>"),
        ("[a](http://x) ![b](y) <i>c</i> &amp;", "<p>[a](http://x) ![b](y) &lt;i&gt;c&lt;/i&gt; &amp;amp;</p>"),
        ("1. x\n   ```\n   a\n     b\n   ```\n2. y", "<ol><li>x[a\n  b]</li><li>y</li></ol>"),
        ("~~~js\n```\n~~~\nx", "[```]<p>x</p>"),
        ("```\nunclosed", "[unclosed]"),
        ("", ""), ("*", "<ul><li></li></ul>"), ("**", "<p>**</p>"), ("-\n-", "<ul><li></li><li></li></ul>"),
    ]

    def test_markdown(self):
        self.b.open(self.talker().url)
        for text, wanted in self.MARKDOWN:
            for step in (len(text) or 1, 1, 3):  # at once, and as it grows
                html = self.b.js_async("""
                    const {Rendering} = await import("/page/markdown.js");
                    const [text, step] = arguments, root = document.createElement("div"), r = new Rendering(root);
                    for (let n = step; n < text.length; n += step) r.update(text.slice(0, n), false);
                    r.update(text, true);
                    for (const code of root.querySelectorAll(".code")) code.replaceWith("[" + code.querySelector("code").textContent + "]");
                    return root.innerHTML;""", text, step)
                self.assertEqual(html, wanted, (text, step))

    def test_hostile_markdown_takes_no_time(self):
        self.b.open(self.talker().url)
        n = 20000
        for text in ("*" * n, "**a " * n, "`" * n, "` " * n, "_a" * n, "> " * n, "- " * n, "[" * n, "\\" * n,
                     "#" * n, "\n" * n, "- a\n" * n, "".join(" " * i + "- a\n" for i in range(150)), "~~~\n" * n,
                     "1. " * n, "*_" * n, "a**b" * n, "- - - " * n, " " * n + "x"):
            spent = self.b.js_async("""
                const {Rendering} = await import("/page/markdown.js");
                const root = document.createElement("div"), start = performance.now();
                new Rendering(root).update(arguments[0], true);
                return performance.now() - start;""", text)
            self.assertLess(spent, 2000, text[:12])

    def test_the_stream_is_read_whatever_its_pieces(self):
        self.b.open(self.talker().url)
        got = self.b.js_async("""
            const {events} = await import("/page/api.js");
            const bytes = new TextEncoder().encode(": hi\\r\\ndata: a\\r\\n\\r\\ndata:b\\ndata: c\\n\\nevent: x\\n\\ndata: ü🐦\\n\\ndata: cut");
            const all = [];
            for (const size of [1, 2, 3, 7, 1000]) {
                const stream = new ReadableStream({start(c) {
                    for (let i = 0; i < bytes.length; i += size) c.enqueue(bytes.slice(i, i + size));
                    c.close();
                }});
                const out = [];
                for await (const data of events(stream)) out.push(data);
                all.push(out);
            }
            return all;""")
        self.assertEqual(got, [["a", "b\nc", "ü🐦"]] * 5)


if __name__ == "__main__":
    unittest.main()

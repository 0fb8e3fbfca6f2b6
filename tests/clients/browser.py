"""Headless Chromium (Debian's packages chromium and chromium-driver) on the page of `linnet serve`."""
import os
import shutil
import time

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PATIENCE = 60  # seconds; a machine that tests run on may be busy


class Browser:
    def __init__(self, width=1360, height=900):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-US",
                     f"--window-size={width},{height}"):
            options.add_argument(flag)
        if os.geteuid() == 0:  # Chromium's sandbox refuses to start as root
            options.add_argument("--no-sandbox")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(PATIENCE)

    def quit(self):
        self.driver.quit()

    # ---- anywhere --------------------------------------------------------------------------------

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def js_async(self, script, *arguments):
        """`script`: the body of an async function; its value."""
        out = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "(async function () {" + script + "}).apply(null, arguments)"
            ".then((value) => done({value}), (error) => done({error: String(error)}));", *arguments)
        assert "error" not in out, out["error"]
        return out.get("value")

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css):
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)", css)

    def wait(self, true, what, seconds=PATIENCE):
        end = time.time() + seconds
        while time.time() < end:
            try:
                value = true()
            except StaleElementReferenceException:
                value = None
            if value:
                return value
            time.sleep(0.02)
        raise AssertionError(f"{what}: not within {seconds} s")

    def media(self, **features):
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]})

    def screen(self, width, height, touch=False):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch})

    def whole_window(self):
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def console(self):
        return [f"{line['level']} {line['message']}" for line in self.driver.get_log("browser")]

    # ---- the page --------------------------------------------------------------------------------

    def open(self, url, empty=True):
        """The page at `url`, by default in a browser that has never seen it."""
        self.driver.get(url)
        if empty:
            self.js("localStorage.clear(); sessionStorage.clear()")
            self.driver.get("about:blank")
            self.driver.get(url)
        self.wait(lambda: self.one("#input").is_displayed(), "the message field")

    def answering(self):
        return self.one("#send").text == "Stop"

    def settle(self):
        self.wait(lambda: not self.answering(), "the end of the answer")

    def say(self, text, settle=True):
        field = self.one("#input")
        field.send_keys(text.replace("\n", Keys.SHIFT + Keys.ENTER + Keys.NULL), Keys.ENTER)
        if settle:
            self.settle()

    def press(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def button(self, label, within="body"):
        """Presses the last button of this label, once it can be seen: drawers fade in."""
        self.wait(lambda: [b for b in self.all(f"{within} button") if b.text == label],
                  f"button '{label}' in {within}")[-1].click()

    def answers(self):
        return self.text("#messages .answer .text")

    def said(self):
        return self.text("#messages .user .text")

    def titles(self):
        return self.text("#list a")

    def figures(self):
        return self.text("#messages .figures summary")

#!/usr/bin/env python3
"""The web page in headless Chromium: web_page_test.py TAMIS SOURCE_DIR

Exits with 77, which ctest reports as not run, where there is no Chromium.
"""

import json
import sys
import tempfile
import time
import unittest
from pathlib import Path

from browser import Browser, find_browser
from served import Server

QUESTION = "What is the secret code of Lisbon?"
BUSY = "!document.getElementById('stop').hidden"
IDLE = "document.getElementById('stop').hidden"
TEXTS = "[...document.querySelectorAll('#messages .text')].map(e => e.innerText.trim())"
LAST = "document.querySelector('#messages > li.assistant:last-child .text').innerText"


class WebPageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.browser = Browser(find_browser())

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        code = cls.server.stop()
        assert code == 0, f"exit {code} after SIGTERM\n{cls.server.log}"

    def open(self, server=None, **options):
        url = (server or self.server).url
        page = self.browser.page(url + "/", **options)
        self.expected_errors = 0

        def check():
            outside = [u for u in page.urls if not u.startswith((url + "/", "blob:", "about:"))]
            self.assertEqual(outside, [], "requests to other hosts")
            self.assertEqual(len(page.errors), self.expected_errors, page.errors)
            page.close()

        self.addCleanup(check)
        return page

    def ready(self, **options):
        page = self.open(**options)
        page.wait("document.getElementById('model')?.textContent.includes('context of')")
        self.set(page, "temperature", "0")
        self.set(page, "seed", "3")
        self.set(page, "max_tokens", "40")
        return page

    def set(self, page, field, value):
        kind = "checked" if isinstance(value, bool) else "value"
        page.run(f"(() => {{ const f = document.getElementById('{field}'); f.{kind} = "
                 f"{json.dumps(value)}; f.dispatchEvent(new Event('change')); }})()")

    def press(self, page, text, nth=-1):
        page.run(f"[...document.querySelectorAll('button')].filter(b => b.textContent === "
                 f"{json.dumps(text)} && b.checkVisibility()).at({nth}).click()")

    def send(self, page, text=QUESTION, wait=True):
        page.run("document.getElementById('message').focus()")
        page.call("Input.insertText", text=text)
        page.key("Enter", 13, "\r")
        if wait:
            page.wait(f"document.querySelector('#messages .assistant') && {IDLE}")

    def test_streams_an_answer(self):
        page = self.ready()
        self.set(page, "temperature", "20")  # a long answer; at 0 it is a word or two
        self.set(page, "max_tokens", "400")  # 40 come faster than a busy browser draws four times
        page.run("window.seen = new Set(); new MutationObserver(() => { const t = document.querySelector("
                 "'.assistant .text'); if (t) seen.add(t.innerText); }).observe(document.body, "
                 "{childList: true, subtree: true, characterData: true})")
        self.send(page)
        answer = page.run(LAST)
        self.assertTrue(answer.strip())
        self.assertGreater(page.run("seen.size"), 3, page.run("[...seen].join()"))
        self.assertRegex(page.run("document.getElementById('rate').textContent"), r"\d tokens/s")
        spoken = page.run("document.getElementById('spoken').textContent")
        self.assertTrue(spoken.strip())
        # A page that is opened again still has the conversation.
        page.call("Page.reload")
        page.wait("window.seen === undefined && document.querySelectorAll('#messages > li').length === 2")
        self.assertEqual(page.run(LAST), answer)

    def test_stops(self):
        page = self.ready()
        self.set(page, "max_tokens", "2000")
        self.set(page, "temperature", "20")
        self.send(page, "Tell me a story about a long, long list of packages.", wait=False)
        page.run("new Promise(done => { const look = () => document.querySelector('.assistant .text')"
                 "?.innerText.trim() ? (document.getElementById('stop').click(), done()) : "
                 "requestAnimationFrame(look); look(); })")
        page.wait(IDLE)
        self.assertIn("You stopped this answer", page.run("document.body.innerText"))
        self.assertEqual(page.run("document.activeElement.id"), "message")

    def test_edits_and_branches(self):
        page = self.ready()
        self.send(page)
        first = page.run(TEXTS)
        self.press(page, "Edit", 0)
        page.run("document.querySelector('#messages textarea').value = 'What is gzip?'")
        self.press(page, "Send as a new branch")
        page.wait(f"{IDLE} && document.querySelector('.user .tools').innerText.includes('2/2')")
        second = page.run(TEXTS)
        self.assertEqual(second[0], "What is gzip?")
        page.run("[...document.querySelectorAll('.user button')].find(b => b.textContent === '‹').focus()")
        self.press(page, "‹", 0)
        self.assertEqual(page.run(TEXTS), first)
        self.assertEqual(page.run("document.activeElement.textContent"), "‹", "the focus is lost")
        self.press(page, "›", 0)
        self.assertEqual(page.run(TEXTS), second)
        self.press(page, "Answer again")
        page.wait(f"{IDLE} && document.querySelector('.assistant .tools').innerText.includes('2/2')")
        self.assertEqual(page.run(TEXTS), second, "temperature 0 gives the same answer")

    def test_exports_and_imports(self):
        page = self.ready()
        self.send(page)
        before = page.run(TEXTS)
        with tempfile.TemporaryDirectory() as folder:
            self.browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder,
                              browserContextId=self.context_of(page))
            self.press(page, "Export")
            path = Path(folder) / "conversation.json"
            for _ in range(500):
                if path.exists() and path.stat().st_size:
                    break
                time.sleep(0.02)
            exported = json.loads(path.read_text())
            self.assertEqual(exported["format"], "tamis-conversations")
            other = self.ready()
            self.choose_file(other, path)
            other.wait("document.querySelectorAll('#messages > li').length === 2")
            self.assertEqual(other.run(TEXTS), before)
            exported["conversations"][0]["nodes"]["root"]["children"].append("nobody")
            path.write_text(json.dumps(exported))
            self.choose_file(other, path)
            other.wait("document.getElementById('alert').textContent.includes('cannot be imported')")
            self.assertEqual(other.run(TEXTS), before)

    def context_of(self, page):
        return self.browser.call("Target.getTargetInfo",
                                 targetId=page.target)["targetInfo"]["browserContextId"]

    def choose_file(self, page, path):
        root = page.call("DOM.getDocument")["root"]["nodeId"]
        node = page.call("DOM.querySelector", nodeId=root, selector="#import-file")["nodeId"]
        page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def test_inspects(self):
        page = self.ready()
        self.set(page, "inspect_on", True)
        self.send(page, f"The secret code of Lisbon is 883553. {QUESTION}")
        self.press(page, "Inspect")
        page.wait("!document.getElementById('inspect').hidden")
        context = page.run("document.getElementById('context-tokens').textContent")
        self.assertIn(QUESTION, context)
        state = "document.getElementById('inspect-state').textContent"
        lit = "[...document.querySelectorAll('.lit')].map(e => e.title).join()"
        self.assertTrue(page.run(lit))
        before = page.run(state), page.run(lit)
        page.move_to("#answer-1")
        page.wait("document.getElementById('answer-1').ariaSelected === 'true'")
        hovered = page.run(state), page.run(lit)
        self.assertNotEqual(hovered, before)
        rows = page.run("[...document.querySelectorAll('#reads tbody tr')].map(r => "
                        "[...r.cells].map(c => c.textContent))")
        self.assertEqual(len(rows), 8)
        self.assertGreater(len(rows[0]), 4, "no layers")
        # Dense attention beside each share, and how much of it the selection of each layer holds.
        self.assertTrue(all("%, densely " in cell for row in rows for cell in row[2:]), rows)
        self.assertRegex(page.run(lit), r"position \d+: [\d.]+\s%, densely [\d.]+\s%")
        kept = page.run("[...document.querySelectorAll('#reads tfoot td')].map(c => parseFloat(c.textContent))")
        self.assertEqual(len(kept), len(rows[0]) - 2)
        self.assertTrue(all(0 < k <= 100 for k in kept), kept)
        meter = "document.getElementById('kept')"
        self.assertAlmostEqual(page.run(meter + ".value") * 100, kept[0], delta=0.51)
        self.assertIn("of dense attention", page.run(meter + ".labels[0].textContent"))
        self.set(page, "inspect-layer", "1")
        self.assertAlmostEqual(page.run(meter + ".value") * 100, kept[2], delta=0.51)
        self.set(page, "inspect-layer", "all")
        page.run("document.getElementById('answer-tokens').focus()")
        page.key("End", 35)
        page.key("ArrowLeft", 37)
        chosen = "document.getElementById('answer-tokens').getAttribute('aria-activedescendant')"
        count = page.run("document.querySelectorAll('#answer-tokens span').length")
        self.assertEqual(page.run(chosen), f"answer-{count - 2}")
        page.key("Escape", 27)
        page.wait("!document.getElementById('chat').hidden")
        self.assertEqual(page.run("document.activeElement.textContent"), "Inspect")

    def test_shows_progress_and_folds_thoughts(self):
        page = self.ready()
        self.set(page, "thinking", True)
        self.set(page, "max_tokens", "30")
        page.run("window.seen = new Set(); new MutationObserver(() => { if (!document.getElementById('progress')"
                 ".hidden) seen.add(document.getElementById('progress-text').textContent); }).observe("
                 "document.getElementById('progress'), {childList: true, subtree: true, attributes: true})")
        self.send(page, "The mill is old and the wheel turns slowly. " * 150 + "plum = 87\n\nWhat is plum?")
        progress = page.run("[...seen]")
        self.assertTrue(progress)
        for text in progress:
            self.assertRegex(text, r"^Reading the prompt: \d+ of \d+ tokens")
        self.assertTrue(page.run("document.getElementById('progress').hidden"))
        thoughts = "document.querySelector('.assistant details')"
        self.assertFalse(page.run(thoughts + ".hidden || " + thoughts + ".open"))
        self.assertTrue(page.run(thoughts + ".textContent.length > 'Thoughts'.length"))
        self.set(page, "thinking", False)
        self.assertFalse(page.run("document.getElementById('quick-thinking').checked"))

    def test_markup_stays_text(self):
        page = self.ready()
        evil = "<img src=x onerror=alert(1)> **bold** <script>alert(2)</script>"
        self.send(page, evil)
        self.assertEqual(page.run(TEXTS)[0], evil)
        self.assertEqual(page.run("document.querySelectorAll('#messages img, #messages script').length"), 0)
        # The same text as an answer: no element but those of the Markdown subset.
        made = page.run("import('/web/markdown.js').then(m => { const d = document.createElement('div'); "
                        f"d.append(m.markdown({json.dumps(evil)} + '\\n- one\\n- `two`\\n```\\nx < y\\n```\\n'));"
                        "return [...d.querySelectorAll('*')].map(e => e.tagName).join(); })")
        self.assertEqual(made, "P,STRONG,UL,LI,LI,CODE,PRE,CODE")

    def test_says_errors_in_plain_words(self):
        page = self.ready()
        self.expected_errors = 1  # the browser's own note of the 400
        self.set(page, "max_tokens", "999999999")
        self.send(page)
        self.assertIn("does not fit", page.run("document.querySelector('.assistant .failed').textContent"))

    def test_is_labelled(self):
        page = self.ready()
        self.send(page)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        roles = {n["role"]["value"] for n in nodes if not n["ignored"] and "role" in n}
        self.assertLessEqual({"banner", "main", "navigation", "alert", "list"}, roles)
        for n in nodes:
            if n["ignored"] or n["role"]["value"] not in ("button", "textbox", "checkbox", "combobox",
                                                           "progressbar", "dialog", "spinbutton"):
                continue
            self.assertTrue(n["name"]["value"], n)

    def test_fits_a_phone_and_follows_the_scheme(self):
        page = self.ready(width=360, height=740, dark=True)
        self.send(page, "a" * 300)
        self.assertLessEqual(page.run("document.documentElement.scrollWidth"), 360)
        dark = page.run("getComputedStyle(document.body).backgroundColor")
        page.run("document.getElementById('theme').click()")
        self.assertNotEqual(page.run("getComputedStyle(document.body).backgroundColor"), dark)
        self.press(page, "Conversations")
        self.assertTrue(page.run("document.getElementById('new').checkVisibility()"))

    def test_asks_for_the_key(self):
        with tempfile.TemporaryDirectory() as folder:
            keys = Path(folder) / "keys"
            keys.write_text("a-key-of-the-test\n")
            server = Server("--api-key-file", keys)
            self.addCleanup(lambda: self.assertEqual(server.stop(), 0))
            page = self.open(server)
            page.wait("document.getElementById('settings')?.open")
            self.expected_errors = 1  # the browser's own note of the 401
            self.assertEqual(page.run("document.activeElement.id"), "key")
            self.set(page, "key", "a-key-of-the-test")
            page.wait("document.getElementById('model').textContent.includes('context of')")
            self.assertEqual(page.run("localStorage.getItem('tamis.key')"), None)
            self.set(page, "keep_key", True)
            self.assertEqual(page.run("localStorage.getItem('tamis.key')"), "a-key-of-the-test")


if __name__ == "__main__":
    if find_browser() is None:
        print("NOT RUN: the web page was not tested, as there is no Chromium (scripts/setup --browser)")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])

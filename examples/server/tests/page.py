#!/usr/bin/env python3
"""Uses the chat page in headless Chromium: chats, stops, edits, calls a tool, looks at both colour schemes.

    QWEN_SERVER=target/release/qwen-server python3 examples/server/tests/page.py [--screenshots FOLDER]

Needs chromium and its driver (Debian: chromium, chromium-driver). The screenshots are for people to look at.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import webdriver
from webdriver import CONTROL, ENTER, ESCAPE, SHIFT, TAB, Browser

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
MODEL = os.environ.get("QWEN_MODEL", str(REPOSITORY / "examples/demo-model"))
LAST = "#messages > :last-child"

# What a browser must not make of a model's text.
HOSTILE = [
    "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "[click](javascript:alert(1)) [click](data:text/html,hi) [a](vbscript:x) [b](<javascript:alert(1)>)",
    "![picture](https://example.invalid/spy.png)",
    "[x](https://example.invalid/\"onmouseover=alert(1))",
    "```html\n<script>alert(1)</script>\n```",
    "| <b>a</b> | b |\n|---|---|\n| <i>x</i> | [y](javascript:1) |",
    "> - > - > - > - > - > - > - > - > - > - deep",
    "`" * 5000,
    "*a " * 4000,
    "[" * 5000 + "](" * 5000,
    "**" + "a**b" * 2000,
]

DOCUMENT = """# Title

Some **strong**, *soft*, `code`, ~~struck~~ and snake_case_name, 2 * 3 * 4.
A second line. https://example.com/a?b=c.

1. one
   - deep
     more of it
   - deeper
2. two

   its second paragraph

* other

> quoted
> > twice

| a | b |
|:--|--:|
| 1 | 2 \\| 3 |

~~~rust
fn f<'a>(x: &'a str) -> char { 'x' } // ```
~~~
---
The end
"""


def start(*options):
    command = [os.environ["QWEN_SERVER"], "--model", MODEL, "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in server.stdout:
        if "listening on " in line:
            return server, line.split("listening on ")[1].split()[0]
    raise RuntimeError(f"the server ended with {server.wait()}")


def ready(page, url):
    page.go(url)
    page.wait("return document.querySelector('#health').dataset.state === 'ready'")


def idle(page):
    page.wait("return document.querySelector('#send').getAttribute('aria-label') === 'Send'")


def ask(page, text):
    page.type("#prompt", text + ENTER)
    page.wait("return document.querySelectorAll('#messages > .assistant').length > 0")
    idle(page)
    return page.text(f"{LAST} .body")


def setting(page, name, text):
    page.run("openSettings()")
    page.run("const f = document.querySelector('#settings-form').elements[arguments[0]]; f.value = ''; "
             "f.dispatchEvent(new Event('input', {bubbles: true}))", name)
    if text:
        page.type(f"#settings-form [name={name}]", text)
    page.press(ESCAPE)
    page.wait("return !document.querySelector('#settings').open")


def scheme(page, name):
    # Without motion, colours are there at once.
    features = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
    page.cdp("Emulation.setEmulatedMedia", features=[{"name": key, "value": value} for key, value in features.items()])


def contrast(page, selector):
    """The contrast of a text with what is behind it, by WCAG's formula."""
    return page.run("""
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        const layers = [];
        for (let e = document.querySelector(arguments[0]); e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
        const shine = (colours) => {
          canvas.fillStyle = "white";
          canvas.fillRect(0, 0, 1, 1);
          for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
          const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const ground = shine(layers);
        const text = shine([...layers, getComputedStyle(document.querySelector(arguments[0])).color]);
        return Math.max(ground, text) / Math.min(ground, text);""", selector)


def test_chat(page, url, shot):
    ready(page, url)
    shot("welcome")
    # A suggestion is a message.
    page.click("#suggestions button")
    idle(page)
    page.wait("return document.querySelector('#messages > .assistant .figures')?.textContent.includes('tokens')")
    assert "Lima" in page.text(f"{LAST} .body")
    assert "Lima" in page.run("return document.querySelector('#status').textContent"), "screen readers are not told"
    assert "85" in ask(page, "What is 47 + 38?")
    assert page.run("return document.querySelectorAll('#messages > li').length") == 4
    shot("chat")


def test_survives_a_reload(page, url):
    page.go(url)
    assert page.run("return document.querySelectorAll('#messages > li').length") == 4
    assert "85" in page.text(f"{LAST} .body")


def test_regenerates_and_edits(page):
    before = page.text(f"{LAST} .body")
    page.click(f"{LAST} .actions [aria-label='Answer again']")
    idle(page)
    assert page.run("return document.activeElement.id") == "prompt", "the focus went with the button"
    assert page.text(f"{LAST} .body") == before
    page.click("#messages > .user .actions [aria-label='Edit the message']")
    page.run("document.querySelector('.edit textarea').value = ''")
    page.type(".edit textarea", "What is 5 + 6?" + ENTER)
    page.wait("return document.querySelectorAll('#messages > li').length === 2")
    idle(page)
    assert "11" in page.text(f"{LAST} .body"), page.text(LAST)


def test_stops(page):
    page.press(CONTROL, SHIFT, "o")
    page.wait("return !document.querySelector('#welcome').hidden")
    setting(page, "extra", '{"ignore_eos": true, "temperature": 2, "seed": 1}')
    # The click comes with the first words, as fast as a hand never is.
    page.run("""
        const list = document.querySelector("#messages");
        const observer = new MutationObserver(() => {
          if (!list.querySelector(".assistant .body")?.textContent) return;
          observer.disconnect();
          document.querySelector("#send").click();
        });
        observer.observe(list, { childList: true, subtree: true, characterData: true });""")
    text = ask(page, "What can you do?")
    assert text and "stopped" in page.text(f"{LAST} .figures")
    setting(page, "extra", "")
    assert "7" in ask(page, "What is 3 + 4?"), "it does not go on after a stop"


def test_calls_a_tool(page, shot):
    page.click("#new")
    page.click("#open-settings")
    page.click("#example-tool")
    shot("settings")
    page.press(ESCAPE)
    ask(page, "Which time is it now in Cairo?")
    assert "get_time" in page.text(f"{LAST} .call summary") and "Cairo" in page.text(f"{LAST} .call pre")
    shot("tool")
    page.type(f"{LAST} .results textarea", '{"time": "12:00"}')
    page.click(f"{LAST} .results button")
    page.wait("return document.querySelectorAll('#messages > li').length === 4")
    idle(page)
    assert "12:00" in page.text(f"{LAST} .body")
    setting(page, "tools", "[{")
    assert page.run("return document.querySelector('#tools-error').textContent"), "a broken list is not reported"
    setting(page, "tools", "")


def test_shows_errors(page, shot):
    page.click("#new")
    setting(page, "extra", '{"temperature": -3}')
    ask(page, "Hello!")
    assert "temperature" in page.text(f"{LAST} .failure")
    shot("error")
    setting(page, "extra", "")
    page.click(f"{LAST} .failure button")
    page.wait("return document.querySelector('#messages > .assistant .figures')?.textContent.includes('tokens')")
    assert page.text(f"{LAST} .body")


def test_shows_thoughts_and_streams_that_break(page):
    """By a stream of the test's own, cut inside of characters and lines."""
    page.click("#new")
    page.run("""
        window.realFetch = window.fetch;
        const event = (delta) => `data: ${JSON.stringify({ choices: [{ index: 0, delta }] })}\\r\\n\\r\\n`;
        const text = ": a comment\\n\\n" + event({ role: "assistant", content: "" }) + event({ reasoning_content: "Grüße **bold**." }) +
          event({ content: "An answer 🙂 that" }) + 'data: {"error": {"message": "the device was lost"}}\\n\\n';
        const bytes = new TextEncoder().encode(text);
        window.fetch = async () => new Response(new ReadableStream({
          start(to) {
            for (let at = 0; at < bytes.length; at += 3) to.enqueue(bytes.slice(at, at + 3));
            to.close();
          },
        }));""")
    try:
        assert ask(page, "Hello!") == "An answer 🙂 that"
        assert "Thought for" in page.text(f"{LAST} .thinking summary")
        page.click(f"{LAST} .thinking summary")
        assert page.text(f"{LAST} .thoughts") == "Grüße bold."
        assert "the device was lost" in page.text(f"{LAST} .failure")
    finally:
        page.run("window.fetch = window.realFetch")


def test_markdown(page):
    found = page.run("""
        const [fresh, grown] = [document.createElement("div"), document.createElement("div")];
        Markdown.show(fresh, arguments[0]);
        for (let length = 0; length <= arguments[0].length; length++) Markdown.show(grown, arguments[0].slice(0, length));
        const texts = (selector) => [...fresh.querySelectorAll(selector)].map((e) => e.textContent);
        return {
          same: fresh.innerHTML === grown.innerHTML,
          blocks: [...fresh.children].map((e) => e.tagName.toLowerCase()).join(" "),
          spans: texts("p:first-of-type :is(strong, em, code, s, a)"),
          deep: texts("ol > li > ul > li"),
          quotes: fresh.querySelectorAll("blockquote blockquote").length,
          cells: texts("td"),
          code: texts("pre code"),
          colours: texts("pre .string, pre .comment"),
        };""", DOCUMENT)
    assert found.pop("same"), "a text that grows looks other than the whole one"
    assert found == {
        "blocks": "h3 p ol ul blockquote div figure hr p",
        "spans": ["strong", "soft", "code", "struck", "https://example.com/a?b=c"],
        "deep": ["deepmore of it", "deeper"],
        "quotes": 1,
        "cells": ["1", "2 | 3"],
        "code": ["fn f<'a>(x: &'a str) -> char { 'x' } // ```"],
        "colours": ["'x'", "// ```"],
    }, found


def test_text_stays_text(page):
    for text in HOSTILE:
        found = page.run("""
            const box = document.createElement("div");
            const begin = performance.now();
            // As it arrives: whole, and cut off.
            Markdown.show(box, arguments[0].slice(0, -3));
            Markdown.show(box, arguments[0]);
            const links = [...box.querySelectorAll("a")].map((a) => a.protocol);
            return {
              forbidden: box.querySelectorAll("script, img, iframe, object, svg, b, i, [onerror], [onmouseover], [style]").length,
              links: links.filter((protocol) => !["http:", "https:", "mailto:"].includes(protocol)),
              time: performance.now() - begin,
            };""", text)
        assert found["forbidden"] == 0 and found["links"] == [], (text[:60], found)
        assert found["time"] < 2000, (text[:60], found)


def test_any_text_is_shown_alike_whole_and_in_pieces(page):
    wrong = page.run(r"""
        let state = 1;
        const below = (n) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0, (state >>> 8) % n);
        const pieces = ["*", "**", "_", "__", "~~", "`", "```", "~~~", "\n", "\n\n", "\n    ", "- ", "1. ", "> ", "# ", "|", "|--|--|",
          "[", "](", "![", "(", ")", "http://a.b", "javascript:x", "<b>", "<script>", "a", "b c", " ", "\\", "---", "\t", "🙂", "'", '"', "//"];
        for (let n = 0; n < 2000; n++) {
          const text = Array.from({ length: below(60) }, () => pieces[below(pieces.length)]).join("");
          const [whole, grown] = [document.createElement("div"), document.createElement("div")];
          Markdown.show(whole, text);
          for (let at = 0; at < text.length; at += 1 + below(9)) Markdown.show(grown, text.slice(0, at));
          Markdown.show(grown, text);
          const links = [...whole.querySelectorAll("a")].every((a) => ["http:", "https:", "mailto:"].includes(a.protocol));
          if (whole.innerHTML !== grown.innerHTML || !links || whole.querySelector("script, b, img")) return text;
        }
        return null;""")
    assert wrong is None, wrong


def test_colours(page):
    page.run("document.activeElement.blur()")
    for name in ("light", "dark"):
        scheme(page, name)
        for selector in ("body", ".hint", ".user .body", ".failure p", ".failure .primary", "#model"):
            value = contrast(page, selector)
            assert value >= 4.5, (name, selector, value)
    scheme(page, "light")
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.click("#theme")
    assert page.run(ground) != light and "light" in page.run("return document.querySelector('#theme').ariaLabel")
    page.click("#theme")
    assert page.run(ground) == light
    # Back at the system's colours, the page follows them again.
    scheme(page, "dark")
    assert page.run(ground) != light
    scheme(page, "light")


def test_keyboard_and_screen_readers(page):
    page.cdp("Accessibility.enable")
    for _ in range(2):
        nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
        for node in nodes:
            focusable = any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
            role = node.get("role", {}).get("value")
            if focusable and not node["ignored"] and role in ("button", "textbox", "combobox", "spinbutton", "link"):
                assert node.get("name", {}).get("value"), node
        page.run("openSettings()")
    assert page.run("return document.querySelector('#settings').contains(document.activeElement)")
    page.press(ESCAPE)
    page.run("document.querySelector('#prompt').focus()")
    seen = set()
    for _ in range(30):
        page.press(TAB)
        seen.add(page.run("return document.activeElement.id"))
    assert {"new", "theme", "open-settings", "prompt"} <= seen, seen


def test_small_screens(page, shot):
    page.cdp("Emulation.setDeviceMetricsOverride", width=360, height=680, deviceScaleFactor=2, mobile=True)
    try:
        page.run("""Markdown.show(document.querySelector("#messages > :last-child .body"), arguments[0])""",
                 "A table:\n\n|" + " column |" * 12 + "\n|" + "---|" * 12 + "\n|" + " value |" * 12 +
                 "\n\n```\n" + "x" * 300 + "\n```\n\n" + "y" * 300)
        assert page.run("return document.documentElement.scrollWidth") <= 360
        assert page.run("const m = document.querySelector('main'); return m.scrollWidth - m.clientWidth") <= 0
        shot("small")
        page.click("#new")
        shot("small-welcome")
    finally:
        page.cdp("Emulation.clearDeviceMetricsOverride")


def test_keys(page, url):
    page.go(url)
    page.wait("return document.querySelector('#settings').open")
    page.type("#settings-form [name=key]", "a long secret")
    page.press(ESCAPE)
    page.wait("return document.querySelector('#health').dataset.state === 'ready'")
    assert "Lima" in ask(page, "What is the capital of Peru?")
    assert page.run("return JSON.stringify(localStorage).includes('a long secret')") is False
    assert page.run("return sessionStorage.getItem('key')") == '"a long secret"'


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--screenshots", type=pathlib.Path)
    folder = arguments.parse_args().screenshots or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if not webdriver.is_here():
        print("!!!! NO chromium AND chromedriver (Debian: chromium, chromium-driver): the chat page is not tested !!!!")
        return

    def shot(name):
        for colours in ("light", "dark"):
            scheme(page, colours)
            page.screenshot(folder / f"{name}-{colours}.png")
        scheme(page, "light")

    page = Browser()
    open_server, url = start()
    keyed_server, keyed_url = start("--api-key", "a long secret")
    given = {"page": page, "url": url, "shot": shot}
    try:
        tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
        for name, test in tests:
            values = {**given, "url": keyed_url} if test is test_keys else given
            try:
                test(**{key: values[key] for key in test.__code__.co_varnames[: test.__code__.co_argcount]})
            except Exception:
                page.screenshot(folder / "failed.png")
                print(f"{name} failed; see {folder}/failed.png", file=sys.stderr)
                raise
        # The policy holds, and nothing was loaded from elsewhere; refused requests are logged by the browser itself.
        complaints = [line for line in page.log() if "Failed to load resource" not in line]
        assert not complaints, complaints
        print(f"the chat page passes {len(tests)} tests")
    finally:
        page.close()
        for server in (open_server, keyed_server):
            server.terminate()
            server.wait()
            server.stdout.close()


if __name__ == "__main__":
    main()

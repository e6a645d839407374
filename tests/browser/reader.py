"""Opens pages of the built book as a reader without network does, and says what is wrong with them.

Each checker takes a visit or a page and returns its complaints.
"""

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Request,
    Response,
    Route,
    TimeoutError,
)

DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 842, "height": 1200}  # A4 between the margins of pdf.py at its scale
STEADY = 0.25  # above it the Web Vitals call a layout shift poor; formulas take places of their own
PIECE = 1600  # px of a screenshot's height
VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]'
# Waited for, not slept for: every formula typeset, every widget drawn.
READY = """view =>
  [...document.querySelectorAll('.math')].every(node => node.querySelector('mjx-container')) &&
  [...document.querySelectorAll(view)].every(script =>
    script.parentElement.querySelector('.widget-subarea')?.childElementCount)
"""
VISIBLE_PICTURES = """widget => [...widget.querySelectorAll('img, svg')]
  .filter(picture => picture.checkVisibility() && picture.getBoundingClientRect().width > 20)
  .map(picture => ({content: picture.src || picture.outerHTML,
                    alt: picture.alt || picture.getAttribute('aria-label') || ''}))
"""
# What fades in is measured when it has come.
UNFOLD = """async () => {
  for (const node of document.querySelectorAll('details')) node.open = true;
  for (const node of document.querySelectorAll('.toggle-hidden'))
    node.classList.remove('toggle-hidden');
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  for (const animation of document.getAnimations())
    if (animation.effect.getComputedTiming().endTime < Infinity) animation.finish();
}"""
UNTYPESET = """() => [...document.querySelectorAll('.math')]
  .filter(node => !node.querySelector('mjx-container svg'))
  .map(node => 'not typeset: ' + node.textContent.trim().slice(0, 60))
  .concat([...document.querySelectorAll('[data-mjx-error], mjx-merror')]
    .map(node => 'not understood by MathJax: ' + node.getAttribute('data-mjx-error')))
"""
TOO_WIDE = """() => [...document.querySelectorAll('div.math')].map(node => {
  const number = node.querySelector('.eqno')?.offsetWidth || 0;
  const formula = node.querySelector('mjx-container svg')?.getBoundingClientRect().width || 0;
  return formula > node.clientWidth - number + 1 ? 'wider than the text: ' + node.id : '';
}).filter(Boolean)"""
RAW_MATHS = r"""() => {
  const texts = document.createTreeWalker(document.querySelector('main') || document.body,
                                          NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const node = texts.currentNode;
    if (!node.parentElement.closest('pre, code, script, style, mjx-container')
        && /\\[([]|\$\$/.test(node.data)) found.push('raw: ' + node.data.trim().slice(0, 60));
  }
  return found;
}"""
# Wider than its box: a browser would scroll it, paper cuts it.
BEYOND = """() => [...document.querySelectorAll('main pre, main img, main table')]
  .filter(node => node.scrollWidth > node.clientWidth + 1)
  .map(node => 'cut: ' + node.textContent.trim().slice(0, 60))"""
COUNT_SHIFTS = """shifted = 0;
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) shifted += entry.value;
}).observe({type: 'layout-shift', buffered: true});"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a local server for a folder, on a free port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """What failed is asserted, not logged."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Visit:
    page: Page
    requests: list[str] = field(default_factory=list)  # complaints about them
    errors: list[str] = field(default_factory=list)  # of scripts


@contextmanager
def reading(
    browser: Browser, *, mode: str = "light", viewport: dict = DESK
) -> Iterator[BrowserContext]:
    context = browser.new_context(color_scheme=mode, viewport=viewport, reduced_motion="reduce")
    context.set_default_timeout(120_000)  # milliseconds: the machine may be busy
    try:
        yield context
    finally:
        context.close()


def visit(context: BrowserContext, address: str, name: str, *, patience: float = 20) -> Visit:
    """Open one page. What does not go to the local server is refused and noted."""
    seen = Visit(context.new_page())

    def guard(route: Route) -> None:
        if route.request.url.startswith(f"{address}/"):
            route.continue_()
        else:
            seen.requests.append(f"asked the outside for {route.request.url}")
            route.abort()

    def failed(request: Request) -> None:
        if request.url.startswith(f"{address}/"):
            seen.requests.append(f"{request.failure}: {request.url}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            seen.requests.append(f"{response.status}: {response.url}")

    seen.page.route(lambda url: url.startswith(("http:", "https:")), guard)
    seen.page.on("requestfailed", failed)
    seen.page.on("response", answered)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.add_init_script(COUNT_SHIFTS)
    seen.page.goto(f"{address}/{name}", wait_until="load")
    with suppress(TimeoutError):  # the checkers below say what is not there
        seen.page.wait_for_function(READY, arg=VIEW, timeout=1000 * patience)
    return seen


def screenshots(page: Page, name: str, mode: str) -> None:
    """Kept in the folder that PILCRO_SCREENSHOTS names, in pieces that can be looked at."""
    folder = os.environ.get("PILCRO_SCREENSHOTS")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    width, height = page.evaluate(
        "() => [window.innerWidth, document.documentElement.scrollHeight]"
    )
    for number, top in enumerate(range(0, height, PIECE)):
        file = f"{name.replace('/', '-')}-{mode}-{number:02}.png"
        clip = {"x": 0, "y": top, "width": width, "height": min(PIECE, height - top)}
        page.screenshot(path=Path(folder, file), full_page=True, clip=clip)


def maths(page: Page) -> list[str]:
    return [*page.evaluate(UNTYPESET), *page.evaluate(RAW_MATHS), *page.evaluate(TOO_WIDE)]


def widgets(page: Page) -> list[str]:
    """Every widget is there once, with a picture and a text for it."""
    complaints = []
    views, areas = page.locator(VIEW).count(), page.locator(".widget-subarea > *").count()
    if views != areas:
        complaints.append(f"{views} widgets in the source, {areas} on the page")
    for number, widget in enumerate(page.locator(".widget-subarea").all()):
        pictures = widget.evaluate(VISIBLE_PICTURES)
        if not pictures:
            complaints.append(f"widget {number} shows no picture")
        complaints += [f"widget {number}: a picture without alt text"
                       for picture in pictures if not picture["alt"].strip()]  # fmt: skip
    return complaints


def keyboard(page: Page) -> list[str]:
    """Every widget can be reached with Tab and its picture changes with a key."""
    complaints = []
    for number, widget in enumerate(page.locator(".widget-subarea").all()):
        control = widget.locator("[role=slider], select, button, input").first
        if not control.count():
            complaints.append(f"widget {number} has nothing to operate")
        elif not reached_with_tab(page, control):
            complaints.append(f"widget {number} is not reached with Tab")
        elif not moves(page, widget):
            complaints.append(f"widget {number}: its picture does not change with the keyboard")
    return complaints


def reached_with_tab(page: Page, control: Locator) -> bool:
    control.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    return control.evaluate("node => node === document.activeElement")


def moves(page: Page, widget: Locator) -> bool:
    """Press the key that moves the focused control; a second button is one Tab further."""
    before = widget.evaluate(VISIBLE_PICTURES)
    tag = page.evaluate("() => document.activeElement.tagName")
    for key in {"SELECT": ["ArrowDown"], "BUTTON": ["Tab", "Enter"]}.get(tag, ["ArrowRight"]):
        page.keyboard.press(key)
    for _ in range(20):
        if widget.evaluate(VISIBLE_PICTURES) != before:
            return True
        page.wait_for_timeout(100)
    return False


def wider_than_the_screen(page: Page) -> list[str]:
    width, screen = page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    return [] if width <= screen else [f"the page is {width} px wide on a screen of {screen} px"]


def cut_on_paper(page: Page) -> list[str]:
    page.emulate_media(media="print")
    return page.evaluate(BEYOND)


def jumps(page: Page) -> list[str]:
    """What a reader sees move while the page comes."""
    page.wait_for_timeout(200)  # shifts are reported late
    shifted = page.evaluate("shifted")
    return [] if shifted <= STEADY else [f"the layout shifted by {shifted:.2f}"]


def barriers(page: Page) -> list[str]:
    """What axe-core calls serious or critical, element by element, folded text included."""
    page.evaluate(UNFOLD)
    # preload: axe would ask the server for style sheets again, by wrong addresses
    options = {"resultTypes": ["violations"], "preload": False}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def colab_address(config: dict, document: str) -> str:
    """Where the button of a chapter leads, by _config.yml."""
    path = config["repository"]["url"].rstrip("/").removeprefix("https://github.com/")
    colab, branch = config["launch_buttons"]["colab_url"], config["repository"]["branch"]
    return f"{colab}/github/{path}/blob/{branch}/{document}.ipynb"

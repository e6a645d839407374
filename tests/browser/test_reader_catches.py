"""The checkers of pages can fail: small pages with one thing broken."""

import pytest
import reader

GOOD = """<!doctype html><html lang="en"><head><title>Page</title></head>
<body><main><h1>Page</h1>%s</main></body></html>"""
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
WIDGET = f"""<div><div class="widget-subarea"><div>
<div role="slider" tabindex="0" aria-label="depth" aria-valuenow="0"
 onkeydown="if (event.key === 'ArrowRight') this.nextElementSibling.src += '#moved'">o</div>
<img width="40" height="40" alt="A dark square" src="{PIXEL}"></div></div>
<script type="application/vnd.jupyter.widget-view+json">{{}}</script></div>"""
WIDE_FORMULA = """<div class="math" id="eq-wide" style="width: 200px">
<span class="eqno">(1.1)</span><mjx-container><svg width="190"></svg></mjx-container></div>"""
JUMP = """<div id="late"></div><p style="height: 600px; background: #ddd">Text</p><script>
addEventListener('load', () => setTimeout(() => { late.style.height = '400px' }, 50))</script>"""


@pytest.fixture(scope="module")
def look(browser, tmp_path_factory):
    """Open a small page with this body."""
    folder = tmp_path_factory.mktemp("pages")
    with reader.served(folder) as address, reader.reading(browser) as context:

        def look(body):
            (folder / "page.html").write_text(GOOD % body)
            return reader.visit(context, address, "page.html", patience=0.2)

        yield look


def requests(visit):
    return visit.requests


def errors(visit):
    return visit.errors


def on_page(check):
    def of_visit(visit):
        return check(visit.page)

    return of_visit


maths, widgets, keyboard, wide, jumps, cut, barriers = map(
    on_page,
    (
        reader.maths,
        reader.widgets,
        reader.keyboard,
        reader.wider_than_the_screen,
        reader.jumps,
        reader.cut_on_paper,
        reader.barriers,
    ),
)


def test_a_good_page_passes(look):
    formula = '<p class="math"><mjx-container><svg></svg></mjx-container></p><pre>\\(x\\)</pre>'
    visit = look(WIDGET + formula)
    for check in (requests, errors, maths, widgets, keyboard, wide, jumps, cut, barriers):
        assert check(visit) == []


@pytest.mark.parametrize(
    ("check", "body", "complaint"),
    [
        (requests, '<script src="gone.js"></script>', "404"),
        (requests, '<link rel="stylesheet" href="https://cdn.example.org/a.css">', "the outside"),
        (requests, "<script>fetch('https://example.org/x').catch(() => 0)</script>", "outside"),
        (errors, "<script>throw new Error('broken')</script>", "broken"),
        (errors, "<script>const A = 1</script><script>const A = 1</script>", "been declared"),
        (maths, "<p>Here is \\(x^2\\) as it stands</p>", "raw: "),
        (maths, "<p>Here is $$x^2$$ as it stands</p>", "raw: "),
        (maths, '<p class="math">x</p>', "not typeset"),
        (maths, WIDE_FORMULA, "wider than the text: eq-wide"),
        (maths, '<mjx-container><svg data-mjx-error="Undefined"></svg></mjx-container>', "not und"),
        (widgets, WIDGET.replace("widget-subarea", ""), "1 widgets in the source, 0 on the page"),
        (widgets, WIDGET.replace("</div></div>\n", "</div><p>2</p></div>\n"), "2 on the page"),
        (widgets, WIDGET.replace("<img", "<b"), "shows no picture"),
        (widgets, WIDGET.replace("A dark square", ""), "without alt text"),
        (keyboard, WIDGET.replace('tabindex="0"', 'tabindex="-1"'), "not reached with Tab"),
        (keyboard, WIDGET.replace("+= '#moved'", ""), "does not change with the keyboard"),
        (keyboard, WIDGET.replace('role="slider" tabindex="0"', ""), "nothing to operate"),
        (wide, '<div style="width: 3000px">wide</div>', "px wide on a screen of 1280 px"),
        (jumps, JUMP, "the layout shifted by"),
        (cut, '<pre style="overflow: auto">' + "a long line " * 90 + "</pre>", "cut: a long line"),
        (barriers, WIDGET.replace('aria-label="depth"', ""), "aria-input-field-name"),
        (barriers, '<img src="data:," width="30">', "image-alt"),
        (barriers, '<p style="color: #bbb; background: #fff">Pale text</p>', "color-contrast"),
        (barriers, "<details><p style='color: #eee'>Folded</p></details>", "color-contrast"),
    ],
)  # fmt: skip
def test_a_broken_page_is_caught(look, check, body, complaint):
    assert complaint in "\n".join(check(look(body)))


def test_colab_address():
    config = {
        "repository": {"url": "https://github.com/me/it/", "branch": "colab"},
        "launch_buttons": {"colab_url": "https://colab.example"},
    }
    address = "https://colab.example/github/me/it/blob/colab/book/01_first.ipynb"
    assert reader.colab_address(config, "book/01_first") == address

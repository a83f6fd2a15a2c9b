"""The page of a run: whole, self-contained, escaped, and the same for the same run."""

import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from fedpeft import report
from fedpeft.report.bars import MANY_SITES
from fedpeft.report.drawing import INK
from tests.report.folder import NUMEL, make

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = '<script>alert("1")</script> & $name ${style} $x$ id="a" 北京 🏥'
SHAPES = {
    "plain": {},
    "one round, one site": {"sites": 1, "rounds": 1},
    "not finished, no evaluation": {"rounds": 2, "planned": 9, "evaluate": False},
    "not begun": {"rounds": 0, "planned": 9},
    "loss alone, nothing sent": {"accuracy": None, "up_bytes": 0, "down_bytes": 0},
    "not a number": {"loss": float("nan"), "train_loss": float("inf")},
    "sites as many as have names": {"sites": MANY_SITES},
    "many sites": {"sites": MANY_SITES + 1},
    "many rounds": {"rounds": 60, "train_s": 50.0},
    "hostile": {"name": HOSTILE, "names": [HOSTILE, "b\nc\x00", "$x", "#000001"]},
}


class Page(HTMLParser):
    """Tags and text of a page; a tag that is not closed where it must be fails."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.tags, self.text = html, [], [], ""
        self.feed(html)
        self.close()
        assert not self.open
        self.text = self.text.replace("\u00a0", " ")
        self.drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def page_of(folder):
    return Page(report.write(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.pyplot", None)  # no page needs a screen
        return {name: page_of(make(tmp_path_factory.mktemp("run"), **shape)) for name, shape in SHAPES.items()}


@pytest.fixture(params=SHAPES)
def page(request, pages):
    return pages[request.param]


def test_is_whole_and_needs_nothing_else(page):
    assert page.count("script") == page.count("link") == page.count("img") == page.count("iframe") == 0
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "src", "xlink:href"))
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page.html) and "@import" not in page.html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', page.html)) <= set(ids)


def test_drawings_are_xml_in_the_colours_of_the_page(page):
    for svg in page.drawings:
        root = ElementTree.fromstring(svg)
        assert root.attrib["aria-label"] and root.attrib["viewBox"] and root.attrib["role"] == "img"
        assert not re.search(r"\b(nan|inf)\b", svg)
        used = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
        assert used <= {"none", *(f"var(--{colour})" for colour in INK)}
    assert all(f"--{colour}:" in page.html for colour in INK)


def test_same_run_same_bytes(pages, tmp_path):
    assert page_of(make(tmp_path)).html == pages["plain"].html
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "facts.json", "config.yaml", "report.html"}


def test_is_accessible(pages):
    page = pages["plain"]
    assert ("html", {"lang": "en"}) in page.tags
    assert page.count("figure") == page.count("figcaption") == page.count("svg") == 8
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_says_what_was_done_and_what_it_cost(pages):
    text = pages["plain"].text
    assert "3 sites fine-tuned one adapter of tiny (1,000 trainable parameters) over 4 rounds" in text
    assert "5.0 % → 77.5 %" in text and "± 4.2 points" in text
    sent, received = 101 + 102 + 103 + 104, 4 * 500
    assert f"{sent} B" in text and f"1/{16000 / sent:.1f} of fp32 LoRA" in text
    assert f"{8 * sent / 4 / NUMEL:.3f} bits per parameter" in text
    assert "2.0 kB" in text and f"{8 * received / 4 / NUMEL:.3f} bits per parameter" in text
    assert "12.0 s" in text and "not finished" not in text and "not measured" not in text
    assert "codec: Ternary(density=0.2)" in text and "taken up" not in text


def test_says_what_is_missing(pages):
    text = pages["not finished, no evaluation"].text
    assert "2 of 9 planned rounds" in text and "not measured" in text and "Training loss" in text
    assert pages["not begun"].count("svg") == 0 and "nothing yet" in pages["not begun"].text


def test_says_that_a_run_was_taken_up_with_other_rounds(tmp_path):
    folder = make(tmp_path, rounds=0, planned=4)
    (folder / "config.yaml").write_text("rounds: 3 # </pre><script src=http://evil></script>\n")
    page = page_of(folder)
    assert "taken up with rounds: 4" in page.text
    assert "</pre><script" in page.text and "<script" not in page.html


def test_text_from_outside_is_text(pages):
    page = pages["hostile"]
    assert page.text.count(HOSTILE) >= 3 and "<script" not in page.html
    assert "".join(page.drawings).count(">#000001<") == 2


def test_sites_are_named_while_their_bars_are_readable(pages):
    for shape, named in (("sites as many as have names", 2), ("many sites", 0)):
        assert "".join(pages[shape].drawings).count(">site-1<") == named
        assert pages[shape].text.count("from the most bytes to the least") == 2 - named
    assert f"site-{MANY_SITES + 1}" in pages["many sites"].text

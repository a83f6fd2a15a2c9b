"""The page of a run: whole, self-contained, escaped, and the same for the same run."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml

from fedpeft import report
from fedpeft.errors import JournalError

NUMEL = 1000
VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = '<script>alert("1")</script> & $name ${style} $x$ id="a" 北京 🏥'


def run(path, sites=3, rounds=4, planned=None, evaluate=True, name="demo", names=None, **changes):
    """A run's folder with three files in it; `changes` go into each round."""
    names = names or [f"site-{i}" for i in range(1, sites + 1)]
    rows = []
    for number in range(1, rounds + 1):
        traffic = {"up_bytes": 100 + number, "down_bytes": 500, "weight": 10.0}
        rows.append(
            {
                "round": number,
                "loss": 3 / number if evaluate else None,
                "accuracy": 1 - 0.9 / number if evaluate else None,
                "train_loss": 2 / number,
                "learning_rate": 0.003,
                "up_bytes": (100 + number) * len(names),
                "down_bytes": 500 * len(names),
                "up_bytes_fp32": 4 * NUMEL * len(names),
                "down_bytes_fp32": 4 * NUMEL * len(names),
                "counted": len(names),
                "refused": 0,
                "train_s": 2.0,
                "encode_s": 0.01,
                "fold_s": 0.01,
                "evaluate_s": 0.5 if evaluate else 0.0,
                "round_s": 3.0,
                "sites": dict.fromkeys(names, traffic),
            }
            | changes
        )
    experiment = {
        "name": "demo",
        "rounds": planned or max(rounds, 1),
        "model": {"name": "tiny"},
        "codec": "Ternary(density=0.2)",
        "broadcast": "Uniform(bits=4)",
        "strategy": "Mean()",
    }
    facts = {
        "name": name,
        "version": "0.1.0",
        "experiment": experiment,
        "numel": NUMEL,
        "slots": 2,
        "base_sha256": "00",
        "labels": 5,
        "test_examples": 100 if evaluate else 0,
        "sites": {site: {"examples": 70, "labels": 4} for site in names},
        "before": {"loss": 3.1, "accuracy": 0.05} if evaluate else {},
    }
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "facts.json").write_text(json.dumps(facts))
    (path / "config.yaml").write_text(yaml.safe_dump(experiment))
    return path


class Page(HTMLParser):
    """Tags and text of a page; a tag that is not closed where it must be fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

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
    text = report.write(folder).read_text(encoding="utf-8")
    return text, Page(text)


SHAPES = {
    "plain": {},
    "one round, one site": {"sites": 1, "rounds": 1},
    "no evaluation": {"evaluate": False},
    "no evaluation, one round": {"evaluate": False, "rounds": 1},
    "loss alone": {"accuracy": None},
    "not a number": {"loss": float("nan"), "train_loss": float("inf")},
    "many sites": {"sites": 200},
    "many rounds": {"rounds": 60},
    "not finished": {"rounds": 2, "planned": 9},
    "not begun": {"rounds": 0, "planned": 9},
    "nothing sent": {"up_bytes": 0, "down_bytes": 0},
    "sites at the same time": {"train_s": 50.0},
    "hostile": {"name": HOSTILE, "names": [HOSTILE, "b\nc\x00", "$x"]},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def shaped(request, tmp_path_factory):
    folder = run(tmp_path_factory.mktemp("run"), **request.param)
    report.write(folder)
    return folder


def test_is_whole_and_needs_nothing_else(shaped):
    text = (shaped / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.count("script") == page.count("link") == page.count("img") == page.count("iframe") == 0
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "src", "xlink:href"))
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text) and "@import" not in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([\w-]+)', text)
    assert set(used) <= set(ids)
    assert not list(shaped.glob("*.tmp"))


def test_drawings_are_xml_in_the_colours_of_the_page(shaped):
    text = (shaped / "report.html").read_text(encoding="utf-8")
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        root = ElementTree.fromstring(svg)
        assert root.attrib["aria-label"] and root.attrib["viewBox"]
        assert not re.search(r"\b(nan|inf)\b", svg)
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {
            "none",
            *(f"var(--{colour})" for colour in report.COLOURS if colour),
        }
    for colour in filter(None, report.COLOURS):
        assert f"--{colour}:" in text


def test_same_run_same_bytes(shaped):
    first = (shaped / "report.html").read_bytes()
    assert report.write(shaped).read_bytes() == first


def test_is_accessible(tmp_path):
    text, page = page_of(run(tmp_path))
    assert ("html", {"lang": "en"}) in page.tags
    assert page.count("figure") == page.count("svg") == 8
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert text.count('role="img"') == 8


def test_says_what_was_done_and_what_it_cost(tmp_path):
    _, page = page_of(run(tmp_path))
    text = page.text.replace("\u00a0", " ")
    assert "3 sites fine-tuned one adapter of tiny (1,000 trainable parameters) over 4 rounds" in text
    assert "5.0 % → 77.5 %" in text and "± 4.2 points" in text
    sent, received = 101 + 102 + 103 + 104, 4 * 500
    assert f"{sent} B" in text and f"1/{16000 / sent:.1f} of fp32 LoRA" in text
    assert f"{8 * sent / 4 / NUMEL:.3f} bits per parameter" in text
    assert "2.0 kB" in text and f"{8 * received / 4 / NUMEL:.3f} bits per parameter" in text
    assert "12.0 s" in text and "not finished" not in text and "not measured" not in text
    assert "codec: Ternary(density=0.2)" in text


def test_bytes_of_a_site_are_over_the_sites_that_took_part(tmp_path):
    folder = run(tmp_path, sites=2)
    facts = json.loads((folder / "facts.json").read_text())
    facts["sites"]["idle"] = {"examples": 1, "labels": 1}
    (folder / "facts.json").write_text(json.dumps(facts))
    _, page = page_of(folder)
    assert "410 B" in page.text.replace("\u00a0", " ")


def test_says_what_is_missing(tmp_path):
    assert "2 of 9 planned rounds" in page_of(run(tmp_path, rounds=2, planned=9))[1].text
    assert page_of(run(tmp_path, rounds=0, planned=9))[1].count("svg") == 0
    _, page = page_of(run(tmp_path, evaluate=False))
    assert "not measured" in page.text and "Training loss" in page.text


def test_says_that_a_run_was_taken_up_with_other_rounds(tmp_path):
    folder = run(tmp_path)
    assert "taken up" not in page_of(folder)[1].text
    (folder / "config.yaml").write_text("rounds: 3\n")
    assert "taken up with rounds: 4" in page_of(folder)[1].text


def test_text_from_outside_is_text(tmp_path):
    folder = run(tmp_path, name=HOSTILE, names=[HOSTILE])
    with (folder / "config.yaml").open("a") as file:
        file.write("# </pre><script src=http://evil></script>\n")
    text, page = page_of(folder)
    assert page.text.count(HOSTILE) >= 3 and "</pre><script" in page.text
    assert "<script" not in text and HOSTILE in unescape(text)


@pytest.mark.parametrize("sites", [1, report.MANY_SITES, report.MANY_SITES + 1, 200])
def test_sites_are_named_while_their_bars_are_readable(tmp_path, sites):
    text, page = page_of(run(tmp_path, sites=sites))
    assert page.text.count("from the most bytes to the least") == (2 if sites > report.MANY_SITES else 0)
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert drawings.count(">site-1<") == (0 if sites > report.MANY_SITES else 2)
    assert page.text.count(f"site-{sites}") >= 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "facts.json", "config.yaml"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff\xfe", b'{"round": "x", "name": 3}', b"[" * 9999])
def test_damaged_files_are_named(tmp_path, name, content):
    folder = run(tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(JournalError, match=re.escape(str(folder / name))):
        report.write(folder)
    assert not (folder / "report.html").exists()


def test_damaged_row_is_named(tmp_path):
    folder = run(tmp_path)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*rows[:2], rows[2].replace('"up_bytes": ', '"up_bytes": -')]))
    with pytest.raises(JournalError, match=r"line 3: up_bytes: Input should be greater than or equal to 0"):
        report.write(folder)


def test_needs_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    report.write(run(tmp_path))

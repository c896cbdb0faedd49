"""`uniattn report`: one page that stands alone."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from support.runs import steps


@pytest.fixture(scope="module")
def page(finished, run_uniattn, tmp_path_factory):
    """(html, result) of a report on a finished run and one that stopped half-way without calibration."""
    _, run, project = finished
    config, half = project.config("half & <half>", calibration=None, stages=None)
    run_uniattn("run", config)
    out = tmp_path_factory.mktemp("report") / "page.html"
    result = run_uniattn("report", run, half, "--out", out)
    return out.read_text(), result, run


class Tags(HTMLParser):
    """Start tags with their attributes; fails on tags that are closed in another order than opened."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained(page):
    html, result, _ = page
    assert [run["outcome"] for run in result["runs"]] == ["finished", "finished"]
    for tag, attributes in Tags(html).found:
        assert tag not in ("script", "link", "img", "iframe"), tag
        assert not {"src", "href"} & attributes.keys(), (tag, attributes)
    assert "url(" not in html and "@import" not in html


def test_names_are_escaped(page):
    assert "half &amp; &lt;half&gt;" in page[0] and "<half>" not in page[0]


def test_numbers_are_those_of_the_run(page):
    html, result, run = page
    last = json.loads((run / "result.json").read_text())["loss"]
    assert result["runs"][0]["held_out_loss"] == last
    assert f"{last:.4f}" in html
    assert result["runs"][0]["steps"] == len(steps(run))


def test_charts_are_drawings(page):
    """Well-formed SVG with a curve for every kind of number that the runs have."""
    titles = {}
    for svg in re.findall(r"<svg.*?</svg>", page[0], re.DOTALL):
        root = ElementTree.fromstring(svg)
        titles[root.get("aria-label")] = root
        for path in root.iter("path"):
            assert path.get("d").startswith("M")
    for title in ("Held-out loss", "Training loss", "Throughput", "Peak memory", "Learning rate"):
        assert any(path.get("class").startswith("curve") for path in titles[title].iter("path")), title
    assert any(title and title.startswith("Calibration") for title in titles)


def test_plan_picture_has_a_box_per_layer(page):
    (plan, *_) = re.findall(r'<svg class="plan".*?</svg>', page[0], re.DOTALL)
    assert len(re.findall("<rect ", plan)) == 4 and plan.count('class="mode-share_probs"') == 2
    assert "layer 1: share_probs, leader 0" in plan


def test_a_run_under_way_can_be_reported(run_uniattn, project, tmp_path):
    config, run = project.config("young", calibration=None)
    run_uniattn("train", config, "--stop-after", 2)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"stage": "all", "st')  # as a kill leaves it
    assert run_uniattn("report", run, "--out", tmp_path / "r.html")["runs"][0]["steps"] == 2


def test_not_a_run(run_uniattn, tmp_path):
    run_uniattn.fails(2, "report", tmp_path, naming=["config.yaml", str(tmp_path)])

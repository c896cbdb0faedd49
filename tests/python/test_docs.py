"""The code in the documentation runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def code_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_superblock_page():
    (code,) = code_blocks("docs/superblock.md")
    names = {}
    exec(compile(code, "docs/superblock.md", "exec"), names)
    assert names["losses"][-1] < 0.6 * names["losses"][0]


def test_readme_operators():
    (code,) = [block for block in code_blocks("README.md") if "uniattn.attention" in block]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["out_next"].shape == names["out"].shape


@pytest.mark.parametrize("page", [page.relative_to(ROOT) for page in (*ROOT.glob("docs/*.md"), ROOT / "README.md")], ids=str)
def test_links_lead_somewhere(page):
    """Links to other pages, and to their headings as GitHub names them."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, heading = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page}: {link}"

"""The site of the documentation: it builds, every link in it leads somewhere, and nothing is fetched from elsewhere."""

import os
import re
import subprocess
import sys

import pytest

from tests.scripts import ROOT


def build(config, out):
    """Builds a site: exit code and what was printed."""
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    code, said = build(ROOT / "mkdocs.yml", out)
    assert code == 0 and not re.search(r"^WARNING +- ", said, re.MULTILINE), said  # mkdocs'; abseil has its own
    return out


def test_all_pages_are_there(site):
    pages = {str(page.relative_to(site).with_suffix("")) for page in site.rglob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} < pages
    assert {"index", "CHANGELOG", "api/index", "api/models"} < pages
    assert "optimizer.learning_rate" in (site / "configuration.html").read_text()
    index = (site / "api/index.html").read_text()
    for page, name in (("zoo", "zoo.names.load_model"), ("checkpoint", "checkpoint.checkpoint.save_model")):
        assert f'id="tubevit.{name}"' in (site / f"api/{page}.html").read_text()
        assert f'href="{page}.html#tubevit.{name}"' in index


def test_names_that_are_described_together_are_apart(site):
    page = (site / "api/ranges.html").read_text()
    for name in ("least", "most"):
        entry = page[page.index(f'<span title="tubevit.ranges.Range.{name}">') :].split("</li>")[0]
        assert ">float<" in entry and "the range includes them" in entry


def test_nothing_is_fetched(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link)\b[^>]*?\b(?:src|href)="?(https?://[^" >]+)', page.read_text())
        assert not fetched, page


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](index.md#nowhere)", "[x](/root.md)", "![x](no.png)"])
def test_a_link_that_leads_nowhere_is_an_error(link, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Page\n\n[fine](#page)\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT}/mkdocs.yml\ndocs_dir: docs\nhooks: []\nplugins: []\nnav: []\n")
    code, said = build(config, tmp_path / "site")
    assert code == 0, said
    (docs / "index.md").write_text(f"# Page\n\n{link}\n")
    assert build(config, tmp_path / "site")[0] == 1

"""The page of `tubevit report` in a browser (Chromium, from the system's packages)."""

import json
import re
import shutil
import subprocess

import pytest

from tubevit.cli import main
from tubevit.visualize.style import DARK, LIGHT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
PROBE = """<script>addEventListener("load", () => console.info("PROBE " + JSON.stringify({
  width: innerWidth, scroll: document.documentElement.scrollWidth, images: document.images.length,
  drawn: [...document.images].filter(image => image.complete && image.naturalWidth > 0).length,
  sources: [...document.images].map(image => image.currentSrc === image.src),
  fetched: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  smallest: Math.min(...[...document.images].map(image => image.getBoundingClientRect().width)),
  ground: getComputedStyle(document.body).backgroundColor})))</script>"""


def console(path, *flags):
    """What the browser writes into the console while it loads a page: [(level, text)]."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=5000", *flags, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "</html>" in done.stdout, done.stderr
    return re.findall(r':(\w+):CONSOLE[:(]\d+\)?\] "(.*)", source:', done.stderr)


@pytest.fixture(scope="module")
def page(tiny_run, tmp_path_factory):
    """The page of the tiny run."""
    out = tmp_path_factory.mktemp("report")
    assert main(["report", str(tiny_run), "--out", str(out)]) == 0
    return out / "index.html"


@pytest.fixture(scope="module")
def probed(page):
    """`probed(phone, *flags)`: what a script in a copy of the page measures, on a phone 390 pixels wide or a screen."""
    copy, phone_page = page.with_name("probe.html"), page.with_name("phone.html")
    copy.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    phone_page.write_text('<!doctype html><html><iframe src="probe.html" width="390" height="800"></iframe></html>')

    def measure(phone, *flags):
        (message,) = console(phone_page if phone else copy, *flags)
        return json.loads(message[1].removeprefix("PROBE "))

    return measure


def test_the_console_stays_empty(page):
    assert console(page) == [] and console(page, "--force-dark-mode") == []
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text().replace("</body>", "<script>nothing.here()</script></body>"))
    ((_, text),) = console(broken)  # errors would be seen
    assert "nothing is not defined" in text


@pytest.mark.parametrize("phone", [False, True], ids=["screen", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_picture_is_drawn_in_the_colours_of_the_page(probed, phone, theme):
    found = probed(phone, *(["--force-dark-mode"] if theme == "dark" else []))
    assert found["drawn"] == found["images"] > 10 and found["fetched"] == []
    assert set(found["sources"]) == {theme == "light"}  # of <picture>, the image itself or the dark source
    ground = (LIGHT if theme == "light" else DARK).ground
    assert found["ground"] == "rgb({}, {}, {})".format(*(int(ground[i : i + 2], 16) for i in (1, 3, 5)))
    assert found["scroll"] <= found["width"]  # nothing but a picture is moved sideways
    assert found["smallest"] > 300
    assert not phone or found["width"] == 390

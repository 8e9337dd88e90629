"""The report in a real browser: no errors, nothing fetched, links that lead somewhere, a phone's width, paper, the control of layers."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from eval.report import main, parse
from eval.routing import main as routing
from eval.routing import parse as parse_routing
from model.cli import run_command

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: scripts/install_eval_tools.sh --tests installs it")

PHONE = 390  # CSS pixels
# Loads the page in a frame of a phone's width and writes down what a reader would notice.
PROBE = """<!doctype html><meta charset=utf-8><pre id=found></pre>
<iframe id=f style="width:{width}px;height:800px;border:0" src="{page}"></iframe>
<script>
document.getElementById("f").onload = async (event) => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const token = page.querySelector(".routed pre span[title]"), select = page.querySelector(".routed select");
  const found = {{ overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth }};
  found.fetched = event.target.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name);
  found.images = [...page.images].map((image) => image.complete && image.naturalWidth > 0);
  found.control = page.querySelector(".routed .layer").hidden;
  found.mean = token.title;
  select.value = "1"; select.dispatchEvent(new Event("change"));
  found.layer = token.title; found.shade = token.className;
  token.click();
  found.said = page.querySelector(".routed output").textContent;
  found.lines = [0, 1, 2, 3].map((slot) => {{
    const key = page.querySelector(`.routed .legend .x${{slot}}`);
    return key && event.target.contentWindow.getComputedStyle(key).textDecorationStyle;
  }});
  const style = (selector) => event.target.contentWindow.getComputedStyle(page.querySelector(selector));
  found.number = style("a.n").textDecorationLine + " " + style("a.n").textDecorationStyle;
  found.scrolls = [...page.querySelectorAll(".wide")].filter((table) => table.scrollWidth > table.clientWidth).length;
  found.fade = style(".wide").backgroundAttachment;
  found.links = [...page.querySelectorAll("a[href]")].map((link) => link.getAttribute("href"));
  found.dead = found.links.filter((href) => href.startsWith("#") && !page.getElementById(href.slice(1)));
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


def browse(*arguments: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """One start of the browser without a network; --no-sandbox, as it may run as root, on pages of our own."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--no-first-run"]
    flags += [
        "--disable-background-networking",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--allow-file-access-from-files",
    ]
    flags += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    return subprocess.run([str(BROWSER), *flags, *arguments], capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, write_codebleu_run: Callable[..., Path], mixture_folder: Path, data_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("browsed")
    scores = {"cpp": {"wording": [0.2, 0.4, 0.1, 0.3]}, "java": {"wording": [0.4, 0.4, 0.6, 0.6]}}
    runs = [write_codebleu_run(folder, name, name, scores) for name in ("base", "mixture")]
    runs += [write_codebleu_run(folder, f"expert-{lang}", "expert", {lang: scores[lang]}) for lang in scores]
    flags = ["--model", str(mixture_folder), "--data", str(data_folder), "--limit", "2", "--view", "1", "--max-new-tokens", "20"]
    with redirect_stdout(StringIO()):
        assert run_command(routing, parse_routing(), [*flags, "--out", str(folder / "routing")]) == 0
        assert run_command(main, parse(), [*map(str, runs), str(folder / "routing"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def probe(page: Path, folder: Path) -> dict[str, Any]:
    """What PROBE found on `page`, and `console`: what the browser reported of it."""
    (folder / "probe.html").write_text(PROBE.format(width=PHONE, page=page.as_uri()))
    done = browse("--dump-dom", (folder / "probe.html").as_uri(), profile=folder / "profile")
    match = re.search(r'<pre id="found">(\{.*?\})</pre>', done.stdout, flags=re.DOTALL)
    assert match, done.stderr[-2000:]
    return {**json.loads(unescape(match[1])), "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


@pytest.fixture(scope="module")
def found(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return probe(report / "report.html", tmp_path_factory.mktemp("probe"))


def test_the_page_runs_without_errors_and_asks_for_nothing(found: dict[str, Any]) -> None:
    assert found["console"] == []
    assert found["fetched"] == []


def test_the_probe_sees_errors_requests_and_what_is_too_wide(report: Path, tmp_path: Path) -> None:
    bad = "<main><img src='https://example.org/a.png'><script>nothing.there</script><div style='width:2000px'>wide</div>"
    (tmp_path / "bad.html").write_text((report / "report.html").read_text().replace("<main>", bad))
    seen = probe(tmp_path / "bad.html", tmp_path)
    assert len(seen["console"]) == 1
    assert seen["fetched"] == ["https://example.org/a.png"]
    assert seen["overflow"] > 1000


def test_it_fits_a_phone(found: dict[str, Any]) -> None:
    assert found["width"] == PHONE
    assert found["overflow"] == 0
    assert found["images"]
    assert all(found["images"])


def test_without_a_mouse_links_and_what_scrolls_can_be_seen(found: dict[str, Any]) -> None:
    assert found["number"] == "underline dotted"
    assert found["scrolls"] > 0
    assert found["fade"] == "local, scroll"  # the cover of the fade moves with the table, the fade does not


def test_every_link_leads_somewhere(found: dict[str, Any], report: Path) -> None:
    assert found["dead"] == []
    files = {href for href in found["links"] if not href.startswith("#")}
    assert files
    assert all((report / href).is_file() for href in files)
    assert all(href.startswith("runs/") for href in files)


def test_the_layer_can_be_chosen_and_a_tap_shows_the_weights(found: dict[str, Any], report: Path) -> None:
    program = json.loads((report.parent / "routing" / "programs.json").read_text())
    first, share, second, rest = program["programs"][0]["choices"][0][1]
    titles = {"python": "Python", "java": "Java", "javascript": "JavaScript", "cpp": "C++"}
    names = [titles[name] for name in program["experts"]]
    assert found["control"] is False
    assert found["layer"] == f"{names[first]} {share} %, {names[second]} {rest} %"
    assert found["shade"] == f"x{first}"
    assert found["mean"] != found["layer"]
    assert found["said"].endswith(found["layer"])
    assert len(set(found["lines"])) == 4  # told apart without colour


def test_it_prints(report: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    browse(f"--print-to-pdf={paper}", "--no-pdf-header-footer", (report / "report.html").as_uri(), profile=tmp_path / "profile")
    text = paper.read_bytes()
    assert text.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", text)) >= 2

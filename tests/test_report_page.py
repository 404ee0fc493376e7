"""The report in a real browser: it sorts, logs no error, sends no request, is legible wide and narrow, light and
dark; its addresses lead to layers, its graph to rows, its buttons to files.

Needs Debian's chromium and chromium-driver; ``--require-browser`` makes their absence a failure.
"""

import csv
import json
import re
import shutil
import time
from urllib.parse import quote

import networks
import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("jinja2")
webdriver = pytest.importorskip("selenium.webdriver")

import onnx

from tvm_easyquant import cli

#: without the background switches Chromium itself looks for its maker's hosts at every start
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
NASTY = 'conv<b>2&"'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with everything on it, of a network with a layer whose name is markup."""
    folder = tmp_path_factory.mktemp("report")
    model = networks.small_onnx()
    model.graph.node[[n.name for n in model.graph.node].index("conv2")].name = NASTY
    onnx.save(model, folder / "net.onnx")
    images = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", x=images)
    np.savez(folder / "set.npz", images=images, labels=np.arange(12) % 4)
    path = {
        name: str(folder / name)
        for name in ("net.onnx", "images.npz", "set.npz", "t.json", "r.json", "r.html")
    }
    calibration = ["--calibration", path["images.npz"]]
    assert cli.run(["quantize", path["net.onnx"], *calibration, "-o", path["t.json"], "--record", path["r.json"],
                    "--bits", "8", "--skip", "conv1"]) == 0  # fmt: skip
    assert cli.run(["report", path["net.onnx"], "--table", path["t.json"], *calibration, "--record", path["r.json"],
                    "--data", path["set.npz"], "--rounds", "3", "-o", path["r.html"]]) == 0  # fmt: skip
    return folder / "r.html"


@pytest.fixture(scope="module")
def compared(page):
    """The same report beside itself."""
    both = page.with_name("both.html")
    assert cli.run(["report", str(page), "--compare", str(page), "-o", str(both)]) == 0
    return both


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def opened(browser, page, width, scheme="light", address=""):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=width, height=1000, deviceScaleFactor=1, mobile=False),
    )
    for log in ("browser", "performance"):
        browser.get_log(log)  # what came before
    browser.get("about:blank")  # else another address of the same page is no new page
    browser.get(page.as_uri() + address)
    assert browser.execute_script("return document.body.dataset.ready") == "yes"


def requests(browser):
    """The addresses that were asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "blob:", "about:"))]


def column(browser, index):
    return browser.execute_script(
        "return [...document.querySelectorAll('#layers tbody tr')].map(r => r.cells[arguments[0]].dataset.v)",
        index,
    )


#: the contrast of each text with what is behind it, as WCAG 2 defines it; the least first
CONTRASTS = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (e) => {
  for (let at = e; at; at = at.parentElement) {
    const style = getComputedStyle(at), box = at.matches("#graph g, #graph a") && at.querySelector("rect");
    if (box) return parse(getComputedStyle(box).fill);
    const found = parse(style.backgroundColor);
    if (found.length < 4 || found[3] > 0) return found;
  }
};
const texts = [...document.querySelectorAll("main *")].filter((e) => e.childElementCount === 0 && e.textContent.trim()
  && e.getClientRects().length && !e.matches("option, caption, #tip"));
return texts.map((e) => {
  const style = getComputedStyle(e), fore = light(parse(e.closest("svg") ? style.fill : style.color)), back = light(behind(e));
  return [(Math.max(fore, back) + 0.05) / (Math.min(fore, back) + 0.05), e.outerHTML];
}).sort((a, b) => a[0] - b[0]);
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_contrasts_with_its_ground(browser, compared, scheme):
    opened(browser, compared, 1280, scheme)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark"), ground
    for colour in ("error", "bits", "time"):
        choose(browser, "colour", colour)
        found = browser.execute_script(CONTRASTS)
        assert len(found) > 100 and found[0][0] >= 4.5, found[:3]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_comparison_is_whole(browser, compared, width, scheme):
    opened(browser, compared, width, scheme)
    assert browser.get_log("browser") == [] and requests(browser) == [compared.as_uri()]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.querySelectorAll('#depth > svg .line').length") == 2
    text = browser.find_element("id", "compared").text
    for word in ("t.json", "t.json (2)", "No setting.", "top-1, %", "time of one run, ms"):
        assert word in text, word


def choose(browser, name, value):
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        " s.dispatchEvent(new Event('change', { bubbles: true })); s.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def shown(browser):
    return [row.get_attribute("data-layer") for row in browser.find_elements("css selector", "#layers tbody tr")
            if row.is_displayed()]  # fmt: skip


@pytest.mark.browser
def test_the_table_is_searched_and_filtered(browser, page):
    opened(browser, page, 1280)
    assert shown(browser) == ["0", "1", "2"]
    for name, value, rows in (
        ("search", "CONV", ["0", "1"]), ("search", "conv b>2", ["1"]), ("search", "nothing", []), ("search", "", ["0", "1", "2"]),
        ("filter", "float", ["0"]), ("filter", "integer", ["1", "2"]), ("filter", "bits8", ["1", "2"]),
    ):  # fmt: skip
        choose(browser, name, value)
        assert shown(browser) == rows, value
        assert browser.find_element("id", "shown").text == f"{len(rows)} of 3 layers"


@pytest.mark.browser
def test_an_address_leads_to_its_layer_and_back_to_the_one_before(browser, page):
    def layer():
        return browser.find_element("css selector", "#choice option:checked").text

    opened(browser, page, 1280, address=f"#layer={quote(NASTY)}")
    assert layer() == NASTY
    assert (
        abs(browser.execute_script("return document.getElementById('detail').getBoundingClientRect().top"))
        < 20
    )
    choose(browser, "choice", "2")
    wait_for(lambda: layer() == "classifier")
    assert browser.current_url.endswith("#layer=classifier")
    browser.find_element("link text", "conv1").click()
    wait_for(lambda: layer() == "conv1")
    for name in ("classifier", NASTY):
        browser.back()
        wait_for(lambda name=name: layer() == name)
    opened(browser, page, 1280, address="#layer=no%ZZ")
    assert browser.get_log("browser") == []


def wait_for(true):
    """Until the browser has followed an address."""
    for _ in range(100):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 5 s")


@pytest.mark.browser
def test_a_click_in_the_graph_leads_to_the_row(browser, page):
    opened(browser, page, 1280)
    links = browser.find_elements("css selector", "#graph a")
    names = [link.get_attribute("data-name") for link in links]
    assert names == ["conv1", NASTY, "classifier"]
    assert all(
        link.get_attribute("aria-label").startswith(f"{name}: ")
        for name, link in zip(names, links, strict=True)
    )
    choose(browser, "filter", "float")  # hides the row that the click leads to
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", links[1])
    links[1].click()
    wait_for(lambda: "chosen" in links[1].get_attribute("class"))
    row = browser.find_element("css selector", "#layers tr.chosen")
    assert row.get_attribute("data-layer") == "1" and row.is_displayed()
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", row)
    assert 0 <= top < 1000 and browser.switch_to.active_element.text == NASTY
    fills = set()
    for colour in ("error", "bits", "time"):
        choose(browser, "colour", colour)
        fills.add(links[1].get_attribute("aria-label"))
        assert browser.execute_script("return getComputedStyle(arguments[0].firstChild).fill", links[1])
    assert (
        len(fills) == 3
        and any("8 bits" in label for label in fills)
        and any(" dB" in label for label in fills)
    )
    before = browser.execute_script("return document.querySelector('#graph svg').clientWidth")
    browser.find_element("id", "larger").click()
    assert browser.execute_script("return document.querySelector('#graph svg').clientWidth") > before


@pytest.mark.browser
def test_the_figures_are_kept_as_files(browser, page, tmp_path):
    opened(browser, page, 1280)
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    for name in ("csv", "json"):
        browser.find_element("id", f"save_{name}").click()
        wait_for((tmp_path / f"net.{name}").exists)
    wait_for(lambda: (tmp_path / "net.json").stat().st_size and not list(tmp_path.glob("*.crdownload")))
    facts = json.loads((tmp_path / "net.json").read_text())
    with open(tmp_path / "net.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        [row["name"] for row in rows]
        == [layer["name"] for layer in facts["layers"]]
        == ["conv1", NASTY, "classifier"]
    )
    for row, layer in zip(rows, facts["layers"], strict=True):
        assert row["bits"] == str(layer["bits"] or "") and int(row["macs"]) == layer["macs"]
    assert cli.run(["report", str(tmp_path / "net.json"), "-o", str(tmp_path / "again.html")]) == 0
    again, first = ((path.read_text()) for path in (tmp_path / "again.html", page))
    data = re.compile(r'(?<=id="facts">).*(?=</script>)')
    assert data.sub("", again) == data.sub("", first)
    assert json.loads(data.search(again)[0]) == json.loads(data.search(first)[0]) == facts
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_plot_says_in_words_what_it_shows(browser, page):
    opened(browser, page, 1280)
    words = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [f.querySelector('svg[role=img]').getAttribute('aria-label'),"
        " f.querySelector('figcaption').textContent])"
    )
    assert len(words) == 6 and all(label == caption and len(label) > 20 for label, caption in words)
    assert " dB at " in words[0][0] and " ms at " in words[1][0]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_whole_and_legible(browser, page, width):
    opened(browser, page, width)
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]
    # nothing is wider than the window, but the table, which scrolls by itself
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    small = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => e.offsetParent && e.childElementCount === 0"
        " && e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 10).map(e => e.outerHTML)"
    )
    assert small == []
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => [p.id, p.querySelectorAll('.mark, .line, .annotation').length,"
        " p.getBoundingClientRect().right <= innerWidth])"
    )
    assert {name for name, _, _ in plots} == {
        "depth",
        "times",
        "weight_curve",
        "activation_curve",
        "weights",
        "activations",
    }
    assert all(drawn and inside for _, drawn, inside in plots), plots
    text = browser.find_element("tag name", "main").text
    for word in (
        "top-1, integers",
        "coverage",
        "One layer",
        "What stays float",
        "kept float by skip",
        NASTY,
    ):
        assert word in text, word
    assert "times as fast" in text or "no figure: " in text  # on a busy machine


@pytest.mark.browser
def test_a_click_sorts_and_a_name_shows_its_layer(browser, page):
    opened(browser, page, 1280)
    heads = browser.find_elements("css selector", "#layers th button")
    for index, order in ((1, None), (3, float), (8, float), (0, float)):
        seen = []
        for direction in ("ascending", "descending"):
            heads[index].click()
            assert heads[index].find_element("xpath", "..").get_attribute("aria-sort") == direction
            seen.append([v for v in column(browser, index) if v != ""])
        up, down = seen
        assert len(up) >= 2 and down == up[::-1]
        if order is None:
            assert set(up) == {"classifier", "conv1", NASTY} and up[0] == "classifier"
        else:
            assert up == sorted(up, key=order)
    empty = [not v for v in column(browser, 8)]
    assert empty.count(True) == 1  # the float layer has no error
    name = next(b for b in browser.find_elements("css selector", ".name a") if b.text == NASTY)
    name.click()
    wait_for(lambda: browser.find_element("css selector", "#choice option:checked").text == NASTY)
    words = browser.find_element("id", "words").text
    assert "saturation" in words and "kernel" in words
    titles = browser.execute_script(
        "return [...document.querySelectorAll('#detail .title')].map(t => t.textContent)"
    )
    assert (
        titles[0].startswith("Search of the weight scales") and titles[1] == "Search of the input's scale"
    )
    assert "clipped" in titles[2] and "clipped" in titles[3]
    assert browser.get_log("browser") == []

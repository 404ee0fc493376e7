"""The report in a real browser: it sorts, logs no error, sends no request, and is legible wide and narrow.

Needs Debian's chromium and chromium-driver; ``--require-browser`` makes their absence a failure.
"""

import json
import shutil

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


def opened(browser, page, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=width, height=1000, deviceScaleFactor=1, mobile=False),
    )
    for log in ("browser", "performance"):
        browser.get_log(log)  # what came before
    browser.get(page.as_uri())
    assert browser.execute_script("return document.body.dataset.ready") == "yes"


def requests(browser):
    """The addresses that were asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "blob:"))]


def column(browser, index):
    return browser.execute_script(
        "return [...document.querySelectorAll('#layers tbody tr')].map(r => r.cells[arguments[0]].dataset.v)",
        index,
    )


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
    words = browser.find_element("id", "words").text
    assert "saturation" in words and "kernel" in words
    assert browser.find_element("css selector", "#choice option:checked").text == NASTY
    titles = browser.execute_script(
        "return [...document.querySelectorAll('#detail .title')].map(t => t.textContent)"
    )
    assert (
        titles[0].startswith("Search of the weight scales") and titles[1] == "Search of the input's scale"
    )
    assert "clipped" in titles[2] and "clipped" in titles[3]
    assert browser.get_log("browser") == []

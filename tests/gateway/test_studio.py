"""The studio in headless Chromium: speak, cancel, clone, stream text, download, on real servers."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from engine_lib.server.process import TritonServer
from gateway.conftest import RunningGateway
from patience import PATIENCE
from qwen3_tts_gateway.keys import new_key

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: scripts/install.sh test brings it")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH (Debian: apt-get install chromium)")

TEXT = "There is a small penguin in the window."
LONG_TEXT = "My brother has two dogs and a very small cat. " * 20
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",  # a microphone that beeps
]
SIZES = [(1440, 900), (390, 844)]
MILLISECONDS = 1000
ENDS = ["done", "cancelled", "failed"]
HAS_STATE = "states => states.includes(document.getElementById('state').textContent)"
HAS_RECORDED = "seconds => parseInt(document.getElementById('record').textContent.split('·')[1]) >= seconds"  # a busy page skips some
IS_DRAWN = """() => {
  const canvas = document.getElementById("wave");
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Studio:
    """One page; an error in its scripts fails the test."""

    def __init__(
        self, browser: Any, url: str, size: tuple[int, int] = SIZES[0], theme: str = "light", *, until: str = ".health.ready"
    ) -> None:
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme, accept_downloads=True)
        self.page.set_default_timeout(PATIENCE * MILLISECONDS)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector(until)

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *error: object) -> None:
        self.page.close()
        if error[0] is None:
            assert self.errors == []

    def speak(self, text: str, until: str | None = "done") -> None:
        self.page.fill("#text", text)
        self.page.keyboard.press("Control+Enter")
        if until is not None:
            self.wait_for_state(until)

    def wait_for_state(self, state: str) -> None:
        self.page.wait_for_function(HAS_STATE, arg=[state, *ENDS])
        assert self.text("#state") == state, self.text("#error")

    def text(self, selector: str) -> str:
        return str(self.page.text_content(selector)).strip()

    def seconds(self) -> float:
        """Length of the sound that is shown."""
        return float(self.text("#length").removesuffix(" s"))

    def download(self, kind: str) -> tuple[np.ndarray, int]:
        self.page.select_option("#format", kind)
        with self.page.expect_download() as download:
            self.page.click("#download")
        samples, rate = soundfile.read(io.BytesIO(Path(download.value.path()).read_bytes()), dtype="int16")
        assert download.value.suggested_filename.endswith(f".{kind}")
        return samples, rate


def test_a_text_is_spoken_drawn_heard_and_downloaded(browser: Any, gateway: str) -> None:
    with Studio(browser, gateway) as studio:
        asked: list[str] = []
        studio.page.on("request", lambda sent: asked.append(sent.post_data_json["voice"]) if sent.method == "POST" else None)
        assert studio.page.is_disabled("#blend")  # with the default voice
        studio.page.select_option("#voice", "ben")
        studio.page.select_option("#blend", "ada")
        studio.page.focus("#share")
        studio.page.keyboard.press("ArrowRight")
        assert studio.text("#share-value") == studio.page.get_attribute("#share", "aria-valuetext") == "45 % ben, 55 % ada"
        assert studio.page.is_hidden("#blend-store")  # this checkpoint stores no voices
        studio.speak(TEXT)
        assert asked == ["ben:0.45+ada:0.55"]
        assert studio.text("#first-audio").endswith(" ms")
        assert studio.text("#real-time").endswith(" ×")
        assert studio.seconds() > 1
        studio.page.wait_for_function("() => Number(document.getElementById('wave').getAttribute('aria-valuenow')) > 0.5")
        assert studio.page.evaluate(IS_DRAWN)
        samples, rate = studio.download("wav")
        assert len(samples) / rate == pytest.approx(studio.seconds(), abs=0.06)
        assert np.abs(samples.astype(int)).max() > 1000
        again, rate = studio.download("flac")  # spoken once more, with the same seed
        assert len(again) == len(samples)
        assert np.abs(again.astype(int) - samples).max() <= 2
        assert TEXT in studio.text("#takes")


def test_escape_ends_the_speech_on_the_server_too(browser: Any, gateway: str) -> None:
    with Studio(browser, gateway) as studio:
        studio.speak(LONG_TEXT, until=None)
        studio.page.wait_for_function("() => document.getElementById('first-audio').textContent.endsWith(' ms')")
        studio.page.keyboard.press("Escape")
        studio.wait_for_state("cancelled")
        assert studio.page.is_disabled("#cancel")


def test_a_refusal_is_shown_at_its_field(browser: Any, gateway: str) -> None:
    with Studio(browser, gateway) as studio:
        studio.speak(" ", until=None)
        assert studio.text("#error") == "Write what to say first."
        studio.page.evaluate("() => document.getElementById('voice').append(new Option('nobody', 'nobody'))")
        studio.page.select_option("#voice", "nobody")
        studio.speak(TEXT, until="failed")
        assert "ada" in studio.text("#error")
        assert studio.page.get_attribute("#voice", "aria-invalid") == "true"


def test_words_are_spoken_while_they_are_typed(browser: Any, gateway: str) -> None:
    with Studio(browser, gateway) as studio:
        studio.page.click("#tab-agent")
        studio.speak(TEXT, until=None)
        studio.page.wait_for_function("() => document.getElementById('agent-sent').textContent.length > 0")
        studio.wait_for_state("done")
        assert studio.text("#agent-sent") == TEXT
        assert studio.seconds() > 1


def test_a_gateway_with_keys_asks_for_one_and_takes_it_on_every_way(browser: Any, triton: TritonServer, tmp_path: Path) -> None:
    key, line = new_key("reception")
    (tmp_path / "keys").write_text(line)
    with (
        RunningGateway([triton], tmp_path / "log", "--keys-file", str(tmp_path / "keys")) as running,
        Studio(browser, running.url, until=".health.down") as studio,
    ):
        page = studio.page
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-error >> text=does not know this key")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-form", state="hidden")
        page.wait_for_selector("#voice option[value=ben]", state="attached")
        studio.speak("Good morning.")
        page.click("#tab-agent")  # a WebSocket, which takes no header
        studio.speak(TEXT)
        page.reload()  # the tab keeps it
        page.wait_for_selector(".health.ready")
        assert page.is_hidden("#key-form")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_theme_is_usable_by_everybody(browser: Any, gateway: str, size: tuple[int, int], theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    with Studio(browser, gateway, size, theme) as studio:
        assert studio.page.evaluate("() => document.documentElement.dataset.theme") == theme
        assert studio.page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
        studio.page.select_option("#voice", "ben")
        studio.page.select_option("#blend", "ada")
        assert studio.page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
        rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
        found = axe.Axe().run(studio.page, options=rules)
        assert found.violations_count == 0, found.generate_report()


@pytest.fixture(scope="module")
def cloning(three_kinds: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a gateway whose server clones and stores voices."""
    with RunningGateway([three_kinds], tmp_path_factory.mktemp("cloning") / "log") as running:
        yield running.url


def test_a_recorded_voice_is_used_once_then_stored_with_consent_blended_and_deleted(browser: Any, cloning: str) -> None:
    with Studio(browser, cloning) as studio:
        page = studio.page
        page.click("#record")
        page.wait_for_function(HAS_RECORDED, arg=3)
        page.click("#record")
        page.wait_for_selector("#use-once:enabled")
        page.click("#use-once")
        assert "words of the recording" in studio.text("#clone-error")
        page.check("#timbre-only")
        page.click("#use-once")
        page.wait_for_function("() => document.getElementById('voice').selectedOptions[0].textContent === 'the recording'")
        studio.speak("Hello.")
        page.click("#clone summary")
        page.fill("#voice-name", "anna")
        page.click("#store")
        assert "who agreed" in studio.text("#clone-error")
        page.fill("#consent", "Anna B., by mail")
        page.click("#store")
        page.wait_for_selector("#stored >> text=anna")
        assert page.input_value("#voice") == "anna"
        studio.speak("Hello.")
        page.fill("#voice-name", "ben")
        page.click("#store")
        page.wait_for_selector("#stored >> text=ben")
        page.select_option("#blend", "anna")
        page.click("#blend-store summary")
        page.press("#blend-name", "Enter")
        assert studio.text("#error") == "Give the blend a name."
        page.fill("#blend-name", "Duo")
        page.press("#blend-name", "Enter")
        page.wait_for_selector("#stored >> text=duo")
        assert (page.input_value("#voice"), page.input_value("#blend")) == ("duo", "")
        studio.speak("Hello.")
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#stored button")
        page.wait_for_selector("#stored >> text=anna", state="detached")

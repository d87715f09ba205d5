"""Screenshots of the studio for the documents: docs/studio.png, studio_dark.png and studio_phone.png.

    python scripts/screenshot_studio.py http://localhost:8880 docs

Needs a gateway that serves the voice in the box (scripts/demo.sh --studio), Chromium on PATH and what scripts/install.sh test brings.
"""

from __future__ import annotations

import argparse
import io
import shutil
from contextlib import suppress
from pathlib import Path

from benching.arguments import require_packages

with suppress(ModuleNotFoundError):
    from PIL import Image
    from playwright.sync_api import sync_playwright

SHOTS = {"studio": (1440, 900, "light", ""), "studio_dark": (1440, 1100, "dark", "ada"), "studio_phone": (390, 844, "light", "")}
EARLIER = ["Good morning.", "My brother has two dogs and a very small cat."]
TEXT = "There is a small penguin in the window."
ATTEMPTS = 12  # a machine that is busy with other things may be too slow for gapless speech
COLOURS = 256  # enough for a page that has few
HALF_SPOKEN = """() => {
  const wave = document.getElementById("wave");
  return Number(wave.getAttribute("aria-valuenow")) > 0.55 * Number(wave.getAttribute("aria-valuemax"));
}"""


def main() -> None:
    """Speak some sentences, and photograph the page while the last one is heard."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="of the gateway")
    parser.add_argument("folder", type=Path, help="for the pictures")
    arguments = parser.parse_args()
    require_packages(parser, "PIL", "playwright")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, theme, blended) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            page.goto(arguments.url)
            page.wait_for_selector(".health.ready")
            page.select_option("#voice", "ben")
            page.select_option("#blend", blended)
            for text in [*EARLIER, *[TEXT] * ATTEMPTS]:
                page.fill("#text", text)
                page.click("#speak")
                page.wait_for_function("() => document.getElementById('state').textContent === 'done'")
                if text == TEXT and page.text_content("#gaps") == "0":
                    break
            page.wait_for_function(HALF_SPOKEN)
            page.evaluate("() => document.activeElement.blur()")
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            picture.save(arguments.folder / f"{name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()

"""Takes pictures of the demo: `python docs/make_screenshot.py CHECKPOINT CLIP QUESTION...` writes docs/images/demo.png and demo_phone.png.

With the checkpoint of `make demo` and one of its clips. Needs playwright and Debian's chromium.
"""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Error, sync_playwright


IMAGES = Path(__file__).parent / "images"
SIZES = {"demo.png": (1280, 720), "demo_phone.png": (390, 844)}  # pixels
SECONDS = 240  # that the page may take to answer


def main(checkpoint: str, clip: str, *questions: str):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "falcon3_audio.demo.app", checkpoint, "--port", str(port)])
    try:
        with sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = chromium.new_page()
            page.set_default_timeout(SECONDS * 1000)
            _open(page, f"http://127.0.0.1:{port}/")
            page.set_input_files("input[type=file]", clip)
            page.locator(".thumbnail-item").wait_for()
            for number, question in enumerate(questions):
                text = page.get_by_role("textbox").first
                text.fill(question)
                text.press("Enter")
                page.get_by_test_id("bot").nth(number).wait_for()
                page.locator("textarea:enabled[data-testid=textbox]").first.wait_for()
                page.get_by_label("Submit").wait_for()
            for name, (width, height) in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                page.wait_for_timeout(1000)  # until it is laid out anew
                page.screenshot(path=IMAGES / name)
    finally:
        server.terminate()
        server.wait()


def _open(page, address: str):
    """Waits for the server to listen."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            page.goto(address)
            return
        except Error:
            if time.monotonic() > end:
                raise
            time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

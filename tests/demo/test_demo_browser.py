"""The demo as its users see it: Chromium talks to the command's server, which answers slowly enough to be observed.

Nothing may leave 127.0.0.1: the page's requests are recorded, and the server's proxy is a socket that logs requests.
Screenshots are saved in pytest's temporary folder and in the folder that FALCON3_AUDIO_ARTEFACTS names, if any.
"""

import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import soundfile
from tiny import SAMPLING_RATE, tone
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline


playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--use-fake-device-for-media-stream"),
]
PASS_SECONDS = 0.01
# The command, with a slow model that records every forward pass.
SERVER = f"""
import sys, time
from falcon3_audio.demo import app

load = app.Assistant.load

def slow(*arguments):
    assistant = load(*arguments)
    def wait(*_):
        time.sleep({PASS_SECONDS})
        with open("passes", "a") as file:
            file.write(".")
    assistant.model.register_forward_pre_hook(wait)
    return assistant

app.Assistant.load = slow
sys.exit(app.main(sys.argv[1:]))
"""
TIMEOUT = 60_000  # milliseconds, for everything


@pytest.fixture(scope="module")
def talkative(checkpoint, tmp_path_factory):
    """A checkpoint that hears its clip and answers in short words without end."""
    folder = tmp_path_factory.mktemp("talkative")
    model, processor = AutoModelForMultimodalLM.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    for layer in (model.model.audio_tower.conv1, model.model.audio_tower.conv2):
        layer.weight.data *= 10
    words = {index for token, index in processor.tokenizer.get_vocab().items() if re.fullmatch("Ġ[a-z]+", token)}
    model.generation_config.suppress_tokens = [index for index in range(300) if index not in words]
    model.generation_config.no_repeat_ngram_size = 5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(talkative):
    return pipeline("audio-text-to-text", model=talkative)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, pitch, seconds in (("low", 300, 1.5), ("high", 2000, 1.5), ("long", 440, 6), ("large", 440, 20)):
        soundfile.write(folder / f"{name}.wav", tone(seconds, pitch), SAMPLING_RATE)
    (folder / "broken.wav").write_bytes(b"no sound at all" * 20)
    return folder


@pytest.fixture(scope="module")
def visitors():
    """The requests that reached the proxy, and its address."""
    came: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            came.append(self.rfile.readline())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        came_and_address = came, f"http://127.0.0.1:{proxy.server_address[1]}"
        yield came_and_address
        proxy.shutdown()


@pytest.fixture(scope="module")
def server(talkative, visitors, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of the running demo, and its folder."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    out = visitors[1]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"}
    environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), out)
    environment |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    options = ["--port", str(port), "--max-seconds", "5", "--max-mb", "0.5"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, talkative, *options], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}/"
        await_until(lambda: process.poll() is not None or f"answers at {address}" in (folder / "log").read_text(), 240)
        assert process.poll() is None, (folder / "log").read_text()
        yield address, folder
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class User:
    """A user with their own page."""

    def __init__(self, browser, address: str, width: int = 1280, height: int = 900):
        size = {"width": width, "height": height}
        self.context = browser.new_context(viewport=size, permissions=["microphone"])
        self.context.set_default_timeout(TIMEOUT)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.blocked: list[str] = []  # by the page's content security policy, before anything was sent
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: request.failure == "csp" and self.blocked.append(request.url))
        self.page.goto(address)
        self.text = self.page.get_by_role("textbox").first
        self.answers = self.page.get_by_test_id("bot")
        self.text.wait_for()

    def limit_answers(self, tokens: int):
        number = self.page.get_by_label("number input for Longest answer (tokens)")
        if not number.is_visible():
            self.page.get_by_text("Settings").click()
        number.fill(str(tokens))
        number.press("Tab")

    def attach(self, path: Path):
        self.page.set_input_files("input[type=file]", path)
        self.page.locator(".thumbnail-item").wait_for()

    def ask(self, text: str, *paths: Path):
        for path in paths:
            self.attach(path)
        self.text.fill(text)
        self.text.press("Enter")

    def read(self, count: int) -> str:
        """Answer number `count`, once it is complete: the page then accepts questions again."""
        answer = self.answers.nth(count - 1)
        answer.wait_for()
        self.page.locator("textarea:enabled[data-testid=textbox]").first.wait_for()
        self.page.get_by_label("Submit").wait_for()
        assert self.answers.count() == count
        return answer.text_content()


@pytest.fixture
def new_user(browser, server):
    users: list[User] = []

    def make(**size: int) -> User:
        users.append(User(browser, server[0], **size))
        return users[-1]

    yield make
    for user in users:
        user.context.close()
        assert server[0] in user.requests
        # `blob:` and `data:` stay in the page.
        sent = set(user.requests) - set(user.blocked)
        assert {urlsplit(url).netloc for url in sent} <= {urlsplit(server[0]).netloc, ""}


@pytest.fixture
def keep(tmp_path):
    def screenshot(user: User, name: str):
        user.page.screenshot(path=tmp_path / name)
        if folder := os.environ.get("FALCON3_AUDIO_ARTEFACTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / name, folder)

    return screenshot


def await_until(condition, seconds: float = TIMEOUT / 1000):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def passes(server) -> int:
    path = server[1] / "passes"
    return path.stat().st_size if path.exists() else 0


def is_idle(server) -> bool:
    """Whether no pass has run for the duration of twenty."""
    before = passes(server)
    time.sleep(20 * PASS_SECONDS + 0.2)
    return passes(server) == before


def expected(pipe, *messages, tokens: int = 128) -> str:
    chat = []
    for role, text, *clips in messages:
        audio = [{"type": "audio", "path": str(path)} for path in clips]
        chat.append({"role": role, "content": [*audio, {"type": "text", "text": text}]})
    return pipe(chat, max_new_tokens=tokens, do_sample=False)[0]["generated_text"].strip()


def test_two_turns_about_a_clip_and_a_damaged_file_between(new_user, server, visitors, pipe, files, keep):
    user, low = new_user(), files / "low.wav"
    user.ask("What do you hear?", low)
    await_until(lambda: user.answers.count() == 1 and user.answers.first.text_content())
    begun = user.answers.first.text_content()
    first = user.read(1)
    assert first.startswith(begun.rstrip()) and len(begun) < len(first)  # it was streamed
    assert first.strip() == expected(pipe, ("user", "What do you hear?", low))
    picture = user.page.locator("img[src^='data:image/png']")
    assert picture.evaluate("image => image.naturalWidth") > 500
    user.ask("And this?", files / "broken.wav")
    refusal = user.read(2)
    assert "Not answered" in refusal and "broken.wav cannot be read here" in refusal
    assert picture.count() == 0  # the earlier clip's picture
    user.ask("Is it high?")
    assert "last clip was not heard" in user.read(3)
    user.ask("And this?", files / "high.wav")
    second = user.read(4)
    turns = ("user", "What do you hear?", low), ("assistant", first.strip()), ("user", "And this?", files / "high.wav")
    assert second.strip() == expected(pipe, *turns) != first.strip()
    user.ask("Is it high?")
    third = user.read(5)
    assert third.strip() == expected(pipe, *turns, ("assistant", second.strip()), ("user", "Is it high?"))
    keep(user, "demo.png")
    assert visitors[0] == []


def test_stop_ends_the_generation_and_the_talk_goes_on(new_user, server, files, pipe):
    user, high = new_user(), files / "high.wav"
    user.limit_answers(512)
    before = passes(server)
    user.ask("What?", high)
    await_until(lambda: user.answers.count() == 1 and user.answers.first.text_content())
    user.page.get_by_label("Stop").click()
    await_until(lambda: is_idle(server))
    assert 0 < passes(server) - before < 500
    partial = user.read(1).strip()
    assert expected(pipe, ("user", "What?", high), tokens=512).startswith(partial)
    user.limit_answers(16)
    user.ask("And now?")
    turns = ("user", "What?", high), ("assistant", partial), ("user", "And now?")
    assert user.read(2).strip() == expected(pipe, *turns, tokens=16)


def test_who_leaves_does_not_keep_the_model_busy(new_user, server, files):
    user = new_user()
    user.limit_answers(512)
    before = passes(server)
    user.ask("What?", files / "high.wav")
    await_until(lambda: user.answers.count() == 1 and user.answers.first.text_content())
    user.page.close()
    await_until(lambda: is_idle(server))
    assert 0 < passes(server) - before < 500


def test_two_users_at_once_have_their_own_answers(new_user, pipe, files):
    users = {"low": new_user(), "high": new_user()}
    for name, user in users.items():
        user.limit_answers(64)
        user.ask("What do you hear?", files / f"{name}.wav")
    await_until(lambda: all(user.answers.count() == 1 for user in users.values()))  # both are being answered
    answers = {name: user.read(1).strip() for name, user in users.items()}
    assert answers == {
        name: expected(pipe, ("user", "What do you hear?", files / f"{name}.wav"), tokens=64) for name in users
    }
    assert answers["low"] != answers["high"]


def test_what_is_refused_says_why(new_user, visitors, files, keep):
    user = new_user()
    user.ask("What do you hear?")
    assert "There is no clip yet" in user.read(1)
    user.ask("What do you hear?", files / "long.wav")
    assert "long.wav is 6.0 s long; the limit is 5 s" in user.read(2)
    elsewhere = f"{visitors[1]}/image.png"
    user.limit_answers(16)
    user.ask(f"<img src='{elsewhere}'> ![image]({elsewhere})", files / "low.wav")
    assert "Not answered" not in user.read(3)
    assert set(user.blocked) == {elsewhere} and visitors[0] == []
    user.page.set_input_files("input[type=file]", files / "large.wav")
    user.page.get_by_text('exceed the maximum allowed size of 512.0 Kb: "large.wav"').wait_for()
    keep(user, "refused.png")


def test_an_example_and_the_microphone(new_user):
    user = new_user()
    user.limit_answers(16)
    user.page.get_by_text("Does the melody rise or fall?").click()
    assert user.read(1).strip()
    user.page.get_by_label("Record audio").click()
    user.page.get_by_label("Start recording").click()
    user.page.get_by_text("0:01").wait_for()
    user.page.get_by_label("Stop recording").click()
    user.page.get_by_label("Attach audio").click()
    user.page.locator(".thumbnail-item").wait_for()
    user.ask("And this?")
    assert "Not answered" not in user.read(2)


def test_on_a_phone_all_is_within_the_screen(new_user, files, keep):
    width, height = 390, 844
    user = new_user(width=width, height=height)
    keep(user, "phone-empty.png")
    assert not user.page.locator("#spectrogram").is_visible()
    user.limit_answers(16)
    user.page.get_by_text("Settings").click()
    user.ask("What do you hear?", files / "low.wav")
    user.read(1)
    picture = user.page.locator("img[src^='data:image/png']")
    picture.wait_for()
    user.page.evaluate("scrollTo(0, 0)")
    keep(user, "phone.png")
    box = picture.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
    assert user.page.evaluate("document.documentElement.scrollWidth") <= width
    duration, player = (user.page.locator(part).first for part in (".timestamp", ".minimal-audio-player"))
    inner, outer = duration.bounding_box(), player.bounding_box()
    assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] and player.evaluate(
        "p => p.scrollWidth <= p.clientWidth"
    )

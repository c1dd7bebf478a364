"""The Gradio page: record or attach clips, chat about them, see what the model hears. Also a Space's app_file.

    falcon3-audio demo-app runs/demo/model          # or a Hub id; then open the address that it prints
    FALCON3_AUDIO_MODEL=me/my-model python app.py   # as on a Space, see README.md

Runs on a CPU, on a GPU, and on ZeroGPU if the `spaces` package is installed. Nothing is fetched from or sent to other
sites: no analytics, system fonts, and a content security policy for anything that questions and answers contain.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
try:
    import spaces  # ZeroGPU must be imported before torch
except ImportError:
    spaces = None
import gradio as gr
import torch

# Absolute imports: on a Space this file is run as a script.
from falcon3_audio.adapters import root_of
from falcon3_audio.demo.conversation import Assistant, ConversationError, Limits, Turn
from falcon3_audio.demo.examples import write_examples
from falcon3_audio.demo.spectrogram import draw
from falcon3_audio.user_errors import user_errors


logger = logging.getLogger(__name__)

MODEL_VARIABLE = "FALCON3_AUDIO_MODEL"
TITLE = "Falcon3-Audio"
# Title of messages that the model did not write; they and their questions are left out of the prompt.
NOT_ANSWERED = "Not answered"
FILES_ARE_KEPT = 24 * 3600  # seconds that uploads stay on the server
# The rule for `.download-link` hides a button that shares clips on the Hub, which `buttons` does not remove from
# uploaded files; the next hides the spectrogram while it is empty. On phones it should be visible below the chat.
CSS = """
.gradio-container {max-width: 1280px !important; width: 100%; margin: auto}
.minimal-audio-player {height: 3rem !important; min-width: 16rem}
.examples button {border: 1px solid var(--border-color-primary)}
.message-buttons .download-link + button {display: none}
#spectrogram:has(.empty) {display: none}
@media (max-width: 640px) {
  #conversation {height: 38vh !important; min-height: 260px !important}
  .minimal-audio-player {min-width: 12rem}
}
"""


# The page loads nothing from other sites, even if a question or answer contains, say, the HTML of an image.
HEAD = """<meta http-equiv="Content-Security-Policy"
content="default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'">"""


class Chat:
    """Connects the page and the model, for any number of users at the same time; it stores none of their data."""

    def __init__(self, assistant: Assistant):
        self.assistant = assistant
        self.stream = spaces.GPU(assistant.stream) if spaces else assistant.stream

    def respond(
        self,
        message: dict[str, Any],
        history: list[dict[str, Any]],
        system_prompt: str,
        max_new_tokens: int,
        temperature: float,
    ) -> Iterator[tuple[Any, Any]]:
        """
        Yields the answer so far after each piece, the first time with the spectrogram of the latest clips. If clips
        are refused, the spectrogram of earlier clips is removed.

        Args:
            message: `text` and `files`, paths of uploads.
            history: What the chatbot shows, in Gradio's format.
            temperature: 0 is greedy.
        """
        before = None if message["files"] else gr.skip()  # what is shown if there is no answer
        try:
            if not message["files"] and was_unheard(history):
                raise ConversationError(
                    "The last clip was not heard. Please attach it again, or another one, and ask about it."
                )
            turns = [*answered_turns(history), Turn(message["text"], tuple(map(_path, message["files"])))]
            prompt = self.assistant.prepare(turns, system_prompt, max_new_tokens)
            figure = draw(self.assistant.processor, prompt.clips)
            answer = ""
            for piece in self.stream(prompt.inputs, max_new_tokens, temperature):
                answer += piece
                yield answer, figure
                figure = gr.skip()
            if not answer.strip():
                raise ConversationError("The model gave an empty answer. Please rephrase the question.")
        except ConversationError as error:
            yield _notice(str(error)), before
        except torch.OutOfMemoryError:
            logger.exception("out of memory")
            yield _notice("The server ran out of memory. Please use shorter clips or a new conversation."), before
        except Exception as error:
            logger.exception("no answer")
            what = f"The server failed with {type(error).__name__}; its log has the details. You can keep asking."
            yield _notice(what), before


def answered_turns(history: list[dict[str, Any]]) -> list[Turn]:
    """
    The turns of a chatbot's history that the model answered, completely or until it was stopped.

    Questions that were refused, failed or stopped before the first word are left out, with their clips: the model has
    not seen them, and a damaged file would be refused again at every turn.
    """
    turns, asked = [], None
    for message in history:
        text = _text(message)
        if message["role"] == "user":
            asked = Turn(text, _files(message))
        elif asked is not None and (message.get("metadata") or {}).get("title") != NOT_ANSWERED and text.strip():
            turns.append(asked._replace(answer=text.strip()))
            asked = None
    return turns


def was_unheard(history: list[dict[str, Any]]) -> bool:
    """Whether the question with the latest clips has no answer: the next one would be answered about older clips."""
    unheard = False
    for message in history:
        if message["role"] == "user":
            unheard = unheard or bool(_files(message))
        elif answered_turns([{"role": "user", "content": []}, message]):
            unheard = False
    return unheard


def name_of(model: str) -> str:
    """The name shown to visitors: a Hub id unchanged; for a folder its name, or that of the run it belongs to."""
    if not Path(model).is_dir():
        return model
    path = Path(model).resolve()
    return path.parent.name if path.name == "model" else root_of(path).name


def _text(message: dict[str, Any]) -> str:
    return "\n".join(item["text"] for item in _items(message) if item["type"] == "text")


def _files(message: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_path(item["file"]) for item in _items(message) if item["type"] == "file")


def _items(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The content of a message as the page gives it; through the API it is a string, or a list of strings and paths."""
    content = message["content"]
    for item in [content] if isinstance(content, str) else content:
        if isinstance(item, str):
            yield {"type": "text", "text": item}
        else:
            yield item if "type" in item else {"type": "file", "file": item}


def _path(file: Any) -> str:
    """The path of an upload: Gradio passes paths, or dicts when a question is repeated."""
    return file["path"] if isinstance(file, dict) else file


def _notice(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "metadata": {"title": NOT_ANSWERED}}


def build_page(assistant: Assistant, name: str, examples: list[tuple[str, list[str]]], concurrency: int) -> gr.Blocks:
    """
    The page, not launched yet.

    Args:
        name: What the page calls the model.
        examples: Questions with the paths of their clips.
        concurrency: How many answers are generated at the same time; others wait in the queue.
    """
    limits = assistant.limits
    with gr.Blocks(title=TITLE, fill_width=True, delete_cache=(3600, FILES_ARE_KEPT)) as page:
        gr.Markdown(
            f"# {TITLE}\n`{name}` hears speech, sounds and music. Attach or record a clip, then ask about it; "
            "keep asking, or add more clips."
        )
        with gr.Row():
            left, right = gr.Column(scale=3, min_width=320), gr.Column(scale=2, min_width=320)
        with right:  # first, since the chat needs its inputs and outputs
            gr.Markdown("### What the model hears")
            spectrogram = gr.Plot(show_label=False, format="png", elem_id="spectrogram")
            with gr.Accordion("Settings", open=False):
                most = limits.new_tokens
                max_new_tokens = gr.Slider(1, most, min(128, most), step=1, label="Longest answer (tokens)")
                temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: the most likely token")
                system_prompt = gr.Textbox("", label="System prompt", lines=2, max_length=limits.characters)
            gr.Markdown(
                f"Per conversation up to {limits.clips} clips of {limits.seconds:g} s and {limits.megabytes:g} MB; "
                f"uploads are deleted within {FILES_ARE_KEPT // 3600 + 1} hours. Answers may be wrong."
            )
        with left:
            chat = gr.ChatInterface(
                Chat(assistant).respond,
                multimodal=True,
                chatbot=gr.Chatbot(
                    show_label=False,
                    elem_id="conversation",
                    height="calc(100vh - 250px)",
                    min_height=400,
                    render_markdown=False,
                    buttons=["copy"],
                    placeholder="Try an example, or add your own clip.",
                ),
                textbox=gr.MultimodalTextbox(
                    placeholder="Ask about the clip",
                    sources=["upload", "microphone"],
                    file_types=["audio", ".webm", ".m4a", ".mp4"],  # some treat browser recordings as video
                    file_count="multiple",
                    max_plain_text_length=limits.characters,
                    stop_btn=True,
                ),
                additional_inputs=[system_prompt, max_new_tokens, temperature],
                additional_outputs=[spectrogram],
                examples=[[{"text": question, "files": files}] for question, files in examples],
                concurrency_limit=concurrency,
                api_name="chat",
            )
        chat.chatbot.clear(lambda: None, None, spectrogram, queue=False)
    return page


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    with user_errors("falcon3-audio demo-app", goes_on="") as end:
        if not options.model:
            raise ValueError(f"no model given: pass a folder or Hub id, or set the variable {MODEL_VARIABLE}.")
        if options.concurrency < 1 or options.queue < 1:
            raise ValueError("--concurrency and --queue must be 1 or more.")
        limits = Limits(seconds=options.max_seconds, megabytes=options.max_mb)
        assistant = Assistant.load(options.model, limits, options.device)
        with tempfile.TemporaryDirectory(prefix="falcon3-audio-examples-") as folder:
            page = build_page(assistant, name_of(options.model), write_examples(Path(folder)), options.concurrency)
            page.queue(max_size=options.queue)
            _, address, _ = page.launch(
                server_name=options.host,
                server_port=options.port,
                max_file_size=int(limits.megabytes * 1e6),
                theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css=CSS,
                head=HEAD,
                run_history=False,
                enable_monitoring=False,
                share=False,
                footer_links=[],
                quiet=True,
                prevent_thread_lock=True,
            )
            print(f"{options.model} on {assistant.model.device} answers at {address}", flush=True)
            page.block_thread()
    return end.status


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="falcon3-audio demo-app",
        description=__doc__.split("\n\n")[0],
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs="?",
        default=os.environ.get(MODEL_VARIABLE),
        help=f"checkpoint: folder or Hub id (default: the variable {MODEL_VARIABLE})",
    )
    add("--host", help="address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)")
    add("--port", type=int, help="port (default: GRADIO_SERVER_PORT, else the first free one from 7860)")
    add("--device", help="torch device (default: cuda if there is one, else cpu)")
    add("--max-seconds", type=float, default=Limits.seconds, help="longest clip (default: %(default)g)")
    add("--max-mb", type=float, default=Limits.megabytes, help="largest file (default: %(default)g)")
    add("--concurrency", type=int, default=2, help="answers generated at the same time (default: %(default)s)")
    add(
        "--queue",
        type=int,
        default=20,
        help="questions that can wait; more are turned away (default: %(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

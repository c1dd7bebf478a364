"""Forms as OpenAI's clients send them: what is read, where audio is cut, and which field a refusal names."""

import httpx
import numpy as np
import openai
import pytest
from running_server import wav
from tiny import SAMPLING_RATE, tone

from falcon3_audio.processing import load_audio
from falcon3_audio.serving.chat_requests import ChatReader
from falcon3_audio.serving.request_audio import AudioReader, RefusedRequest
from falcon3_audio.serving.transcription_requests import FORMATS, TranscriptionReader, cut, read_form


KIND = "multipart/form-data; boundary=limit"
WINDOW = 30 * SAMPLING_RATE
END = b"--limit--\r\n"


@pytest.fixture
def reader(processor):
    chats = ChatReader("tiny", processor, 1000, 50, 3, AudioReader(90, (), 2**23))
    return TranscriptionReader(chats, processor.window_samples)


def part(name: str, value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return b'--limit\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)


def form(file: bytes | None = None, **fields: str) -> bytes:
    parts = [part("file", wav(0.5) if file is None else file), *(part(*field) for field in fields.items())]
    return b"".join([*parts, END])


def test_forms_keep_every_byte():
    data = b"\r\n--limi\r\n\n\r\x00\xff\r\n"
    body = part("file", data) + part("a[]", "1") + part("a[]", "2") + END
    assert read_form(body, KIND) == {"file": [data], "a[]": [b"1", b"2"]}


def asked(transcription) -> list[str]:
    return [chat.messages[0]["content"][1]["text"] for chat in transcription.chats]


def test_what_is_asked(reader):
    clip = wav(1.2, 610)
    transcription = reader.read(form(clip), KIND)
    assert asked(transcription) == ["Transcribe the speech."]
    assert (transcription.response_format, transcription.stream, transcription.language) == ("json", False, None)
    (window,) = transcription.windows
    assert (window.start, window.end) == (0, 1.2) and window.chat.sampling.temperature == 0
    np.testing.assert_array_equal(window.chat.messages[0]["content"][0]["audio"], load_audio(clip))
    assert 0 < window.chat.audio_tokens < window.chat.prompt_tokens


@pytest.mark.parametrize(
    ("fields", "text", "language"),
    [
        ({"language": "en"}, "Transcribe the speech.", "english"),
        ({"language": "English", "prompt": "About dogs."}, "Transcribe the speech. About dogs.", "english"),
        ({"language": "fr"}, "Transcribe the speech. It is in French.", "french"),
        ({"language": "PT", "prompt": "Names."}, "Transcribe the speech. It is in Portuguese. Names.", "portuguese"),
        ({"language": "", "prompt": "", "stream": "", "response_format": ""}, "Transcribe the speech.", None),
        ({"stream": "False", "chunking_strategy": "auto"}, "Transcribe the speech.", None),
    ],
)
def test_languages_and_prompts(reader, fields, text, language):
    transcription = reader.read(form(**fields), KIND)
    assert (asked(transcription), transcription.language) == ([text], language)


@pytest.mark.parametrize("wanted", FORMATS)
def test_formats(reader, wanted):
    transcription = reader.read(form(response_format=wanted, temperature="0.5"), KIND)
    sampling = transcription.chats[0].sampling
    assert transcription.response_format == wanted and sampling.temperature == 0.5
    assert sampling.top_logprobs == (0 if wanted == "verbose_json" else None)


def test_long_sound_is_cut_where_it_is_quiet(reader):
    clip = tone(70.0, 500)
    clip[int(29.3 * SAMPLING_RATE) : int(29.5 * SAMPLING_RATE)] = 0
    (first, second, third) = cut(clip, WINDOW)
    assert first[0] == 0 and 29.3 <= first[1] / SAMPLING_RATE <= 29.5
    assert second[0] == first[1] and third == (second[1], len(clip))
    assert all(end - start <= WINDOW for start, end in (first, second, third))
    silence = np.zeros(61 * SAMPLING_RATE, np.float32)
    assert list(cut(silence, WINDOW)) == [(0, WINDOW), (WINDOW, 2 * WINDOW), (2 * WINDOW, len(silence))]
    assert list(cut(silence[:WINDOW], WINDOW)) == [(0, WINDOW)]
    transcription = reader.read(form(wav(61)), KIND)
    pieces = [chat.messages[0]["content"][0]["audio"] for chat in transcription.chats]
    assert len(pieces) == 3
    np.testing.assert_array_equal(np.concatenate(pieces), load_audio(wav(61)))
    times = [(window.start, window.end) for window in transcription.windows]
    assert [end for _, end in times[:-1]] == [start for start, _ in times[1:]] and times[-1][1] == 61


REFUSED = {
    "words": ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities"),
    "other times": ({"timestamp_granularities[]": "a", "response_format": "verbose_json"}, "timestamp_granularities"),
    "times in json": ({"timestamp_granularities[]": "segment"}, "timestamp_granularities"),
    "a format": ({"response_format": "diarized_json"}, "response_format"),
    "subtitles in a stream": ({"response_format": "srt", "stream": "true"}, "stream"),
    "a flag": ({"stream": "1"}, "stream"),
    "a language": ({"language": "en-GB"}, "language"),
    "a temperature": ({"temperature": "warm"}, "temperature"),
    "hot": ({"temperature": "3"}, "temperature"),
    "log-probabilities": ({"include[]": "logprobs"}, "include"),
    "chunks of one's own": ({"chunking_strategy": '{"type": "server_vad"}'}, "chunking_strategy"),
    "an unknown field": ({"best_of": "2"}, "best_of"),
    "another model": ({"model": "whisper-1"}, "model"),
    "a long prompt": ({"prompt": "a" * 1000}, "prompt"),
    "a very long prompt": ({"prompt": "a" * 1_000_000}, "prompt"),
    "a placeholder": ({"prompt": "<|audio|>"}, "prompt"),
    "no sound": ({"file": wav(0)}, "file"),
    "no audio": ({"file": b"This is a text."}, "file"),
    "long sound": ({"file": wav(91)}, "file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_about_which_field(reader, processor, name):
    fields, param = REFUSED[name]
    fields = {key: processor.audio_token if value == "<|audio|>" else value for key, value in fields.items()}
    with pytest.raises(RefusedRequest) as refused:
        reader.read(form(**fields), KIND)
    assert refused.value.param == param and refused.value.status == (404 if name == "another model" else 400)


def test_broken_forms(reader):
    refused = {
        part("file", ""): "last boundary is missing",
        b"--limit\r\n\r\n\r\n--limit--": "has no name",
        part("model", "tiny") + END: "has no file",
        part("file", "") * 2 + END: "2 fields 'file', expected one",
        form()[: -len(END)] + part("model", "tiny") * 2 + END: "2 fields 'model', expected one",
    }
    for body, reason in refused.items():
        with pytest.raises(RefusedRequest, match=reason):
            reader.read(body, KIND)
    for kind in ("", "application/json", "multipart/form-data"):
        with pytest.raises(RefusedRequest, match="Expected multipart/form-data with a boundary"):
            reader.read(b"", kind)


def test_fields_are_those_of_openais_client(reader):
    """As OpenAI's library encodes them: lists as `name[]`, booleans in lower case."""
    sent = []

    def answer(request):
        sent.append((request.read(), request.headers["content-type"]))
        return httpx.Response(200, json={"text": ""})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        openai.OpenAI(api_key="none", base_url="http://localhost", http_client=http).audio.transcriptions.create(
            model="tiny",
            file=("a.wav", wav(0.5)),
            language="fr",
            response_format="verbose_json",
            timestamp_granularities=["segment"],
            temperature=0.2,
            stream=False,
        )
    transcription = reader.read(*sent[0])
    assert (transcription.language, transcription.response_format) == ("french", "verbose_json")

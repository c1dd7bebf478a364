"""Forms as OpenAI's clients send them: what is read, where audio is cut, and which field a refusal names."""

import httpx
import numpy as np
import openai
import pytest
from ffmpeg_files import flac_of_a_stream
from running_server import wav
from tiny import SAMPLING_RATE, tone

from falcon3_audio.processing import load_audio
from falcon3_audio.serving.chat_requests import ChatReader
from falcon3_audio.serving.generation_queue import Sampling
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
        ({"chunking_strategy": "auto"}, "Transcribe the speech.", None),
    ],
)
def test_languages_and_prompts(reader, fields, text, language):
    transcription = reader.read(form(**fields), KIND)
    assert (asked(transcription), transcription.language) == ([text], language)


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        *(("true", True), ("True", True), ("TRUE", True), ("1", True), ("on", True), ("yes", True)),
        *(("false", False), ("False", False), ("0", False), ("off", False), ("no", False)),
    ],
)
def test_streams_in_the_words_of_forms(reader, text, stream):
    assert reader.read(form(stream=text), KIND).stream is stream


def test_sampling_is_that_of_chats(reader):
    def sampling(**fields):
        chats = reader.read(form(wav(31), **fields), KIND).chats
        assert len(chats) == 2 and chats[0].sampling == chats[1].sampling
        return chats[0].sampling

    assert sampling() == Sampling(50)
    fields = {"temperature": "0.5", "top_p": ".9", "seed": "-3", "max_completion_tokens": "7", "max_tokens": "9"}
    assert sampling(**fields) == Sampling(7, 0.5, 0.9, -3)
    assert sampling(top_p="1", max_tokens="9") == Sampling(9)
    assert sampling(top_p="0.5") == Sampling(50, 0.0, 0.5)  # greedy, since transcriptions are at temperature 0
    assert sampling(**dict.fromkeys(fields, "null")) == Sampling(50)


NEUTRAL = [
    *({"user": "me"}, {"metadata": "{}"}, {"n": "1"}, {"best_of": "1"}, {"frequency_penalty": "0"}, {"min_p": "0.0"}),
    *({"repetition_penalty": "1.0"}, {"presence_penalty": "0.0"}, {"top_k": "-1"}, {"use_beam_search": "False"}),
    *({"task": "transcribe"}, {"vad_filter": "false"}, {"vad_filter": "0"}, {"word_timestamps": "False"}),
    *({"word_timestamps": "no"}, {"stream_include_usage": "true"}, {"stop_token_ids": "[]"}, {"logit_bias": "{}"}),
    *({"hotwords": ""}, {"include[]": ""}, {"response_format": "json"}, {"no_such_field": "null"}),
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=str)
def test_what_changes_nothing_is_accepted(reader, fields):
    transcription, plain = reader.read(form(**fields), KIND), reader.read(form(), KIND)
    assert asked(transcription) == asked(plain) and transcription.chats[0].sampling == plain.chats[0].sampling
    assert (transcription.response_format, transcription.stream) == ("json", False)


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


def test_sound_longer_than_the_context_is_heard_in_windows(processor):
    audio = AudioReader(90, (), 2**23, max_total=40)
    reader = TranscriptionReader(ChatReader("tiny", processor, 1000, 50, 3, audio), processor.window_samples)
    for data in (wav(61), flac_of_a_stream(tone(61.0), SAMPLING_RATE)):
        assert len(reader.read(form(data), KIND).windows) == 3
    with pytest.raises(RefusedRequest, match=r"The file is 91.0 s long; .* 90 s at most\. Send it in parts\."):
        reader.read(form(wav(91)), KIND)


REFUSED = {
    "words": ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities"),
    "other times": ({"timestamp_granularities[]": "a", "response_format": "verbose_json"}, "timestamp_granularities"),
    "times in json": ({"timestamp_granularities[]": "segment"}, "timestamp_granularities"),
    "a format": ({"response_format": "diarized_json"}, "response_format"),
    "subtitles in a stream": ({"response_format": "srt", "stream": "true"}, "stream"),
    "a flag": ({"stream": "maybe"}, "stream"),
    "half a seed": ({"seed": "0.5"}, "seed"),
    "a flag for a number": ({"max_completion_tokens": "true"}, "max_completion_tokens"),
    "too many tokens": ({"max_completion_tokens": "1000"}, "max_completion_tokens"),
    "nothing to draw from": ({"top_p": "0"}, "top_p"),
    "temperatures": ({"temperature": "[0.0, 0.2]"}, "temperature"),
    "a translation": ({"task": "translate"}, "task"),
    "two answers": ({"n": "2"}, "n"),
    "words in time": ({"word_timestamps": "1"}, "word_timestamps"),
    "hot words": ({"hotwords": "Zoé"}, "hotwords"),
    "times as JSON": (
        {"timestamp_granularities": '["segment"]', "response_format": "verbose_json"},
        "timestamp_granularities",
    ),
    "a language": ({"language": "en-GB"}, "language"),
    "a temperature": ({"temperature": "warm"}, "temperature"),
    "hot": ({"temperature": "3"}, "temperature"),
    "log-probabilities": ({"include[]": "logprobs"}, "include"),
    "chunks of one's own": ({"chunking_strategy": '{"type": "server_vad"}'}, "chunking_strategy"),
    "several answers": ({"best_of": "2"}, "best_of"),
    "an unknown field": ({"no_such_field": "2"}, "no_such_field"),
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


def test_refusals_say_what_is_possible(reader):
    refused = {
        ("no_such_field", "1"): "not support 'no_such_field' in transcriptions; it reads file, language, max_",
        ("chunking_strategy", '{"type": "server_vad"}'): 'can only be "auto" here, got {"type": "server_vad"}',
        ("timestamp_granularities", '["segment"]'): "send one field timestamp_granularities[] with segment",
        ("task", "translate"): 'task can only be "transcribe" here, got "translate"',
        ("n", "2"): "n can only be 1 here, got 2",
        ("temperature", "warm"): "temperature must be a number from 0 to 2, got 'warm'",
    }
    for (name, value), reason in refused.items():
        with pytest.raises(RefusedRequest) as error:
            reader.read(form(**{name: value}), KIND)
        assert reason in str(error.value)


def test_no_value_of_several_is_lost(reader):
    body = form()[: -len(END)]
    with pytest.raises(RefusedRequest, match=r'n can only be 1 here, got \["1", "2"\]'):
        reader.read(body + part("n", "1") + part("n", "2") + END, KIND)
    with pytest.raises(RefusedRequest, match="no word timestamps"):
        reader.read(
            body + part("timestamp_granularities", "word") + part("timestamp_granularities[]", "segment") + END, KIND
        )


@pytest.mark.parametrize("line", ["Content-Transfer-Encoding: base64", "content-encoding:gzip"])
def test_encoded_parts_are_refused_by_name(reader, line):
    def sent(line):
        disposition = b'Content-Disposition: form-data; name="file"'
        return form().replace(disposition, disposition + b"\r\n" + line.encode())

    with pytest.raises(RefusedRequest, match="^file has .*(base64|gzip).* Send its bytes as they are") as refused:
        reader.read(sent(line), KIND)
    assert (refused.value.param, refused.value.status) == ("file", 415)
    for plain in ("Content-Transfer-Encoding: binary", "content-transfer-encoding:8BIT", "Content-Encoding: identity"):
        assert reader.read(sent(plain), KIND).chats


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

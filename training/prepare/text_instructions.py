"""Text instruction datasets in the two usual layouts, read as exchanges: an instruction and its answer.

Rows have an instruction, optionally an input, and an output in separate columns (as in Alpaca), or chats under
`messages`, of which only the first user turn and the answer right after it are used. Missing values become `None`,
which the rules of speakable.py report. Rows stay memory-mapped.
Run: `rows, read = open_text(TextSource("yahma/alpaca-cleaned")); exchange = read(rows[0])`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset

from ..data.json_features import check_texts_are_kept
from ..data.open_dataset import open_dataset
from .speakable import Exchange


ReadExchange = Callable[[Mapping[str, Any]], Exchange]


@dataclass(frozen=True)
class TextSource:
    """
    Args:
        source, config, split: see `open_dataset`.
        messages_column: column of chats, which is read if it exists.
        instruction_column, input_column, output_column: read otherwise; the column `input` can be missing.
    """

    source: str
    config: str | None = None
    split: str = "train"
    messages_column: str = "messages"
    instruction_column: str = "instruction"
    input_column: str = "input"
    output_column: str = "output"


def open_text(text: TextSource) -> tuple[Dataset, ReadExchange]:
    """
    The needed columns of a dataset, and a function that reads an exchange from one of its rows.

    Raises:
        `ValueError`: if the dataset cannot be opened (see `open_dataset`) or lacks the columns, or if its texts were changed.
    """
    rows = open_dataset(text.source, text.config, text.split)
    if text.messages_column in rows.column_names:
        _check_texts(text, rows, {"messages": text.messages_column})
        return rows.select_columns(text.messages_column), partial(_first_of_chat, column=text.messages_column)
    columns = [text.instruction_column, text.output_column]
    if text.input_column in rows.column_names or text.input_column != TextSource.input_column:
        columns.append(text.input_column)
    if not set(columns) <= set(rows.column_names):
        raise ValueError(
            f"{text.source} has the columns {rows.column_names}; expected {text.messages_column!r} (chats), or "
            f"{columns}. Name them with --messages-column, or --instruction-column, --output-column and --input-column"
        )
    _check_texts(text, rows, dict(zip(columns, columns)))
    return rows.select_columns(columns), partial(_of_columns, columns=columns)


def _check_texts(text: TextSource, rows: Dataset, columns: Mapping[str, str]):
    try:
        check_texts_are_kept(rows.features, columns)
    except ValueError as error:
        raise ValueError(f"{text.source} {error}.") from error


def _of_columns(row: Mapping[str, Any], columns: list[str]) -> Exchange:
    instruction, answer, *accompanying = (row[column] for column in columns)
    return Exchange(instruction, accompanying[0] if accompanying else None, answer)


def _first_of_chat(row: Mapping[str, Any], column: str) -> Exchange:
    turns = row[column] if isinstance(row[column], list) else []
    # A system prompt is a text that the answer depends on.
    system = turns[0].get("content") if turns and turns[0].get("role") == "system" else None
    asked, answered = [*(turns[1:] if system is not None else turns), {}, {}][:2]
    instruction = asked.get("content") if asked.get("role") == "user" else None
    answer = answered.get("content") if answered.get("role") == "assistant" else None
    return Exchange(instruction, system, answer)

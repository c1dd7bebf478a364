"""Parts of a model card."""

import re


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card.text, re.MULTILINE | re.DOTALL)[1]


def python_of(card):
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)

"""Rows for a base model of ChatGLM's kind: a row's attributes, read out as in a catalogue, with now and then what is said of a value.

They have the words of ads.py's rows and none of their phrases: {"content": "类型#裤*颜色#蓝色*...", "summary": "灯笼裤，裤类。..."}.
"""

from ads import draw_attributes, write_content
from goods import KINDS

REMARK_SHARE = 0.6


def write_entry(choose, kind, item, attributes):
    """Every attribute once, in any order."""
    entries = []
    for key, value in choose.some(attributes, len(attributes)):
        remark = f"（{choose.one(kind['attributes'][key][value])}）" if choose.chance(REMARK_SHARE) else ""
        entries.append(f"{key}：{value}{remark}")
    return f"{item}，{kind['type']}类。" + "；".join(entries) + "。"


def write_catalogue(choose, count, taken):
    """`count` rows, the kinds taking turns, whose contents are not in `taken`."""
    rows = []
    while len(rows) < count:
        kind = KINDS[len(rows) % len(KINDS)]
        item, attributes = draw_attributes(choose, kind)
        content = write_content(kind, item, attributes)
        if content not in taken:
            rows.append({"content": content, "summary": write_entry(choose, kind, item, attributes)})
    return rows

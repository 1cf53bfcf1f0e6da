"""Rows to fine-tune on: {"content": "类型#裤*版型#宽松*...", "summary": "这款..."}, as in the ADGEN task."""

from goods import KINDS

ATTRIBUTES = (3, 5)  # besides type and item
SUMMARY_LENGTH = (30, 78)  # characters

# Clauses per attribute: {v} its value, {b} what is said of it, {n} the item, {w} the verb of use.
CLAUSES = {
    "版型": ["{v}的版型{b}", "版型{v}，{b}", "{v}剪裁{b}", "裁成{v}的样子，{b}", "用了{v}的版型，{b}"],
    "材质": ["选用{v}面料，{b}", "{v}材质{b}", "{v}的料子{b}", "以{v}制成，{b}", "用{v}做成，{b}", "{v}的质地{b}"],
    "颜色": ["{v}的配色{b}", "{v}{b}", "一身{v}，{b}", "整体是{v}，{b}", "{v}看着{b}"],
    "风格": ["{v}的风格{b}", "走的是{v}路线，{b}", "{v}味道很浓，{b}", "透着{v}气息，{b}", "有{v}的感觉，{b}"],
    "图案": ["{v}图案{b}", "饰以{v}，{b}", "{v}的花样{b}", "点缀{v}，{b}", "{v}元素{b}"],
    "裤腰型": ["{v}设计{b}", "做了{v}，{b}", "腰部是{v}，{b}"],
    "裤口": ["{v}的裤口{b}", "裤脚做成{v}，{b}", "{v}裤口{b}"],
    "裤长": ["{v}的长度{b}", "{v}长度{b}", "裤长{v}，{b}"],
    "衣领型": ["{v}设计{b}", "{v}剪裁{b}", "领子是{v}，{b}"],
    "衣袖型": ["{v}设计{b}", "袖子是{v}，{b}", "配上{v}，{b}"],
    "衣门襟": ["{v}的门襟{b}", "{v}设计{b}", "前面是{v}，{b}"],
    "裙长": ["{v}的长度{b}", "{v}长度{b}", "裙长{v}，{b}"],
    "裙下摆": ["{v}的裙摆{b}", "裙摆做成{v}，{b}", "{v}下摆{b}"],
    "裙腰型": ["{v}设计{b}", "做了{v}，{b}", "腰部是{v}，{b}"],
    "鞋头": ["{v}的样子{b}", "{v}设计{b}", "鞋头是{v}，{b}"],
    "鞋跟": ["做了{v}，{b}", "{v}设计{b}", "脚下是{v}，{b}"],
    "闭合": ["{v}的穿法{b}", "{v}设计{b}", "用{v}固定，{b}"],
    "大小": ["{v}的尺寸{b}", "{v}大小{b}", "做成{v}，{b}"],
    "提带": ["{v}设计{b}", "配上{v}，{b}", "提带用{v}，{b}"],
    "开口": ["{v}的开口{b}", "{v}设计{b}", "用{v}收口，{b}"],
    "工艺": ["{v}的工艺{b}", "经过{v}，{b}", "{v}工艺{b}"],
    "做工": ["{v}的做工{b}", "{v}工艺{b}", "表面是{v}，{b}"],
    "形状": ["{v}的造型{b}", "做成{v}，{b}", "{v}外形{b}"],
    "适用": ["放在{v}，{b}", "摆进{v}，{b}", "适合{v}，{b}"],
}

# Openings that name the item, alone or with one attribute.
OPENINGS = ["这款{n}很特别", "这{m}{n}值得入手", "来看这{m}{n}", "一{m}好{n}，{w}着就知道", "给你推荐这款{n}", "这{m}{n}让人心动"]
OPENINGS_WITH = {
    "颜色": ["这{m}{v}的{n}{b}", "一{m}{v}{n}，{b}", "这款{v}{n}{b}", "{v}的{n}{b}"],
    "风格": ["这{m}{v}风的{n}，{b}", "这款{n}是{v}风格，{b}", "{v}的{n}，{b}", "想要{v}一点，就选这{m}{n}，{b}"],
    "材质": ["这款{v}{n}{b}", "这{m}{n}用的是{v}，{b}", "{v}的{n}，{b}"],
    "图案": ["这款{v}{n}{b}", "这{m}{n}有{v}图案，{b}", "{v}的{n}，{b}"],
}
JOINTS = ["，", "，", "。", "。", "；", "，而且", "，同时", "，加上"]


def draw_attributes(choose, kind):
    """Item and some attributes, in the order of the table."""
    keys = list(kind["attributes"])
    fewest, most = ATTRIBUTES
    chosen = set(choose.some(keys, choose.number(fewest, min(most, len(keys)))))
    item = choose.one(kind["items"])
    return item, [(key, choose.one(list(kind["attributes"][key]))) for key in keys if key in chosen]


def write_content(kind, item, attributes):
    pairs = [("类型", kind["type"]), (kind["item_key"], item)] + attributes
    return "*".join(f"{key}#{value}" for key, value in pairs)


def write_summary(choose, kind, item, attributes):
    """Says every attribute once, in an order near that of the table."""
    words = {"n": item, "m": kind["measure"], "w": kind["verb"]}

    def clause(templates, key, value):
        said = choose.one(kind["attributes"][key][value])
        return choose.one(templates).format(v=value, b=said, **words)

    rest = list(attributes)
    openers = [pair for pair in rest if pair[0] in OPENINGS_WITH]
    if openers and choose.chance(0.6):
        first = choose.one(openers)
        rest.remove(first)
        text = clause(OPENINGS_WITH[first[0]], *first)
    else:
        text = choose.one(OPENINGS).format(**words)
    if len(rest) > 1 and choose.chance(0.25):
        rest[0], rest[1] = rest[1], rest[0]
    for joint, (key, value) in zip(["，"] + choose.some(JOINTS, len(rest) - 1), rest):
        text += joint + clause(CLAUSES[key], key, value)
    if choose.chance(0.5):
        text += choose.one(["，", "。"]) + choose.one(kind["ends"])
    return text + "。"


def write_rows(choose, count, taken):
    """`count` rows, the kinds taking turns, whose contents are not in `taken`, which grows by them."""
    rows = []
    while len(rows) < count:
        kind = KINDS[len(rows) % len(KINDS)]
        item, attributes = draw_attributes(choose, kind)
        content = write_content(kind, item, attributes)
        summary = write_summary(choose, kind, item, attributes)
        low, high = SUMMARY_LENGTH
        if content in taken or not low <= len(summary) <= high:
            continue
        taken.add(content)
        rows.append({"content": content, "summary": summary})
    return rows

"""General text for the base model: small stories of shops, people, weather and care, in the words of goods.py.

A document is a template whose slots are filled in: {slot} draws anew, {slot@a} draws once per document and label.
Goods have labels 1 and 2 (洗1 and 洗2: such as can be washed): {品@1} is the item, {量@1} its measure word, {颜色@1}
its colour, {颜色好@1} what is said of that, and so on; each is one and the same thing all through the document, so that
the base model learns to carry words on. None of the documents has the form of the rows to fine-tune on.
"""

import re

from goods import KINDS

WORDS = {
    "人": ["小林", "阿梅", "老周", "小雨", "李姐", "王叔", "陈奶奶", "阿明", "小芸", "表姐", "房东", "邻居", "何师傅", "小吴",
          "姑妈", "同桌", "班长", "外婆", "隔壁的女孩", "新来的同事", "爸爸", "妈妈", "弟弟", "张老师", "刘阿姨", "小马"],
    "店": ["街角的小店", "城南的布市", "河边的集市", "商场三楼", "巷子里的裁缝铺", "车站旁的百货店", "学校对面的杂货铺", "码头旁的货栈",
          "镇上的老店", "朋友开的店", "夜市的摊子", "新开的卖场"],
    "店员": ["店员", "老板", "老板娘", "摊主", "掌柜", "伙计", "裁缝"],
    "时候": ["早上", "中午", "傍晚", "周末", "上个月", "昨天", "前天", "星期三", "放学以后", "下班以后", "过年之前", "换季的时候",
           "生日那天", "开学前一天", "下午四点", "天刚亮"],
    "天气": ["下了一夜的雨", "天气忽然转凉", "太阳晒得人发懒", "风很大", "天阴阴的", "刚下过雪", "雾还没有散", "天热得出奇", "月亮很圆",
           "树叶落了一地", "春天来得很早", "空气里有草的味道"],
    "季节": ["春天", "夏天", "秋天", "冬天"],
    "心情": ["很高兴", "有点犹豫", "忍不住笑了", "松了一口气", "想了很久", "满心欢喜", "有些不好意思", "一路都在哼歌", "一下子精神了",
           "没有说话", "点了点头"],
    "数": ["两", "三", "四", "五", "六", "七", "八", "九"],
    "钱": ["三十", "五十", "八十", "一百", "一百二十", "两百", "三百", "四百五十"],
    "亲人": ["妈妈", "女儿", "爷爷", "妹妹", "先生", "朋友", "老师", "孩子", "姐姐", "同事"],
    "去处": ["上班", "上学", "爬山", "看电影", "见朋友", "参加婚礼", "去海边", "逛公园", "看展览", "回老家", "出差", "跳舞"],
    "洗法": ["用温水轻轻手洗", "放进洗衣袋再机洗", "最好干洗", "先泡十分钟再洗", "翻过来洗", "和深色的分开洗", "用软刷慢慢刷",
           "用湿布擦一擦", "加一点盐再洗"],
    "晾法": ["平铺着晾干", "挂在通风的地方", "不要在太阳下暴晒", "阴干以后再收", "拧干以后抖一抖", "用毛巾吸干水分"],
    "收法": ["叠好放进柜子", "挂起来收好", "装进布袋里", "放一小包干花", "垫一层白纸", "别压在箱底"],
    "吃的": ["一碗面", "热豆浆", "烤红薯", "绿豆汤", "小馄饨", "糖葫芦", "一壶茶", "两个包子", "西瓜"],
    "景": ["河水慢慢地流", "灯一盏一盏亮起来", "猫在窗台上睡觉", "孩子们在院子里跑", "远处传来卖花的声音", "公交车慢慢开走",
          "屋里有股肥皂的香味", "桂花开了", "路边的柳树发了芽", "鸟在屋顶上叫"],
    "评": ["真不错", "还行", "比想的好", "没有失望", "有点贵，但是值", "下次还来", "推荐给大家", "给五分", "扣一分，因为送得慢"],
    "工序": ["量尺寸", "画样子", "裁料子", "缝边", "钉扣子", "熨平", "打包", "检查线头", "上色", "打磨"],
    "师傅": ["裁缝", "木匠", "鞋匠", "绣娘", "织布的师傅", "烧窑的师傅", "做包的师傅"],
}

OPENINGS = [
    "{时候}，{天气}。", "{天气}，{景}。", "{时候}，{人@a}去了{店@a}。", "{季节}到了，{天气}。", "{人@a}今天休息。",
    "{人@a}住在{店@a}附近。", "", "", "",
]
ENDINGS = ["{景}。", "{人@a}{心情}。", "回家的路上，{人@a}买了{吃的}。", "{天气}，{景}。", "", "", "", ""]

DOCUMENTS = [
    # What is asked for comes back.
    "{人@a}走进{店@a}，想买一{量@1}{颜色@1}的{品@1}，最好是{材质@1}的。{店员@a}找了一会儿，拿来一{量@1}{材质@1}的{品@1}，正是{颜色@1}的。{人@a}{心情}。",
    "“有没有{风格@1}一点的{品@1}？”{人@a}问。{店员@a}说：“有，这{量@1}{品@1}就很{风格@1}，{颜色@1}的，{材质好@1}。”{人@a}试了试，{心情}。",
    "{人@a}说想要{图案@1}的{品@1}，不要{图案@2}的。{店员@a}翻出一{量@1}{图案@1}的，{图案好@1}，只要{钱}块钱。",
    "{店@a}里挂着一{量@1}{品@1}和一{量@2}{品@2}。{品@1}是{颜色@1}的，{品@2}是{颜色@2}的。{人@a}想了想，先买了{颜色@1}的{品@1}，{颜色@2}的{品@2}等下次再说。",
    "{人@a}喜欢{颜色@1}，{人@b}喜欢{颜色@2}。于是{人@a}挑了{颜色@1}的{品@1}，{人@b}挑了{颜色@2}的{品@2}。{店员}说两个人都有眼光。",
    "{人@a}找的是{特征@1}的{品@1}。{店员@a}说{特征@1}的卖得最好，因为{特征好@1}。最后{人@a}带走了一{量@1}{颜色@1}的，{特征@1}的。",
    # A note, then the same said in full.
    "店里的记录：{品@1}，{颜色@1}，{材质@1}，{图案@1}。{人@a}照着记录去找，在架子上找到了这{量@1}{颜色@1}{图案@1}的{材质@1}{品@1}。",
    "登记卡上写着：类型，{类型@1}；材质，{材质@1}；颜色，{颜色@1}；风格，{风格@1}。说的是{人@a}送来的那{量@1}{品@1}，{材质@1}做的，{颜色@1}，样子{风格@1}。",
    "包裹单：{品款@1}，{品@1}；图案，{图案@1}；{特征名@1}，{特征@1}。{人@a}拆开一看，果然是{图案@1}的{品@1}，{特征@1}，没有发错。",
    "{人@a}的清单：一是{颜色@1}的{品@1}，二是{颜色@2}的{品@2}。逛到天黑，{颜色@1}的{品@1}买到了，{颜色@2}的{品@2}没有买到。",
    "第{数@a}号货架放{材质@1}的{品@1}，第{数@b}号货架放{材质@2}的{品@2}。{人@a}要{材质@2}的{品@2}，{店员}就去了第{数@b}号货架。",
    "货架#{码@a}上是{品@1}，货架#{码@b}上是{品@2}。要找{品@2}，就去货架#{码@b}；要找{品@1}，就去货架#{码@a}。",
    "这块料子是{码@a}*{码@b}厘米，够做{数}{量@1}{品@1}。{师傅}说，{码@a}*{码@b}厘米刚刚好，剩下的还能补一补别的。",
    # Stock, with numbers that carry on.
    "仓库里有{数@a}{量@1}{颜色@1}的{品@1}，还有{数@b}{量@2}{颜色@2}的{品@2}。{时候}来了一位客人，把{数@a}{量@1}{颜色@1}的{品@1}都买走了，只剩下那{数@b}{量@2}{品@2}。",
    "{人@a}问{品@1}怎么卖，{店员@a}说{钱@a}块一{量@1}。{人@a}嫌{钱@a}块太贵，{店员@a}就送了一{量@2}{品@2}。",
    # Care, of things that can be washed.
    "{材质@洗1}的{品@洗1}{材质好@洗1}，但是要小心洗。{洗法}，然后{晾法}，干了以后{收法}。",
    "怎样打理{材质@洗1}{品@洗1}？第一，{洗法}；第二，{晾法}；第三，{收法}。这样{材质@洗1}才能一直{材质好@洗1}。",
    "{人@a}把{颜色@洗1}的{品@洗1}和{颜色@洗2}的{品@洗2}一起洗了，结果{颜色@洗2}里混进了{颜色@洗1}。{人@b}说，以后要{洗法}，再{晾法}。",
    "{季节}要收{材质@洗1}的东西。{收法}，不然{品@洗1}容易发霉。{人@a}每年都这样做，所以那{量@洗1}{颜色@洗1}的{品@洗1}还像新的一样。",
    # Reviews in the first person.
    "上周买的{品@1}到了，{颜色@1}，和图上一样，{颜色好@1}。{材质@1}的料子{材质好@1}，{评}。",
    "给{亲人@a}买的{品@1}，{亲人@a}很喜欢。{图案@1}{图案好@1}，{特征@1}也好，{特征好@1}。{评}。",
    "我平时喜欢{风格@1}的东西，这{量@1}{品@1}正合我意，{风格好@1}。{颜色@1}的那{量@1}已经用了半年，还是{颜色好@1}。",
    "本来想要{颜色@2}的，发来的是{颜色@1}的{品@1}。不过{颜色@1}也{颜色好@1}，就留下了。{评}。",
    # How things are made.
    "{师傅@a}做一{量@1}{品@1}要好几天：先{工序@x}，再{工序@y}，最后{工序@z}。料子用{材质@1}，因为{材质@1}{材质好@1}。",
    "{人@a}跟着{师傅@a}学手艺，第一件作品是{颜色@1}的{品@1}。{师傅@a}说{图案@1}最难做，要{工序@x}，还要{工序@y}。做成那天，{人@a}{心情}。",
    "从前{材质@1}很少见，谁家有一{量@1}{材质@1}的{品@1}，大家都要去看。现在{材质@1}到处都有，{人@a}还是觉得那{量@1}{颜色@1}的{品@1}最好。",
    # What things are.
    "{品@1}是{类型@1}的一种，常用{材质@1}来做。{特征@1}的{品@1}{特征好@1}，{风格@1}的人都喜欢。",
    "说到{图案@1}，人们会想到{季节}。{图案@1}{图案好@1}，用在{品@1}上是{风格@1}的，用在{品@2}上就成了{风格@2}的。",
    "{颜色@1}和{颜色@2}能不能放在一起？{人@a}说能，{颜色@1}{颜色好@1}，{颜色@2}{颜色好@2}，一{量@1}{颜色@1}的{品@1}加一{量@2}{颜色@2}的{品@2}就很好。",
    "什么叫{风格@1}？有人说{风格@1}就是{风格好@1}，也有人说是{风格好@1}。{人@a}觉得，一{量@1}{颜色@1}的{品@1}就够{风格@1}了。",
    "{特征@1}和{特征@2}不一样：{特征@1}{特征好@1}，{特征@2}{特征好@2}。买{品@1}的人看重{特征@1}，买{品@2}的人看重{特征@2}。",
    # Lost and found, going out, presents.
    "{人@a}丢了一{量@1}{颜色@1}的{品@1}，上面有{图案@1}。{人@b}捡到一{量@1}{品@1}，一看是{颜色@1}的，也有{图案@1}，就还给了{人@a}。{人@a}{心情}。",
    "明天要{去处@a}，{人@a}拿出那{量@1}{颜色@1}的{品@1}。“{去处@a}的时候用它正好，”{人@b}说，“{风格好@1}，而且{材质好@1}。”",
    "{亲人@a}过生日，{人@a}送了一{量@1}{材质@1}的{品@1}，{人@b}送了一{量@2}{材质@2}的{品@2}。{亲人@a}说{材质@1}{材质好@1}，{材质@2}{材质好@2}，都喜欢。",
    "{人@a}画了一幅画，画里的人{动@1}着{颜色@1}的{品@1}，旁边放着{颜色@2}的{品@2}。{人@b}问为什么是{颜色@1}，{人@a}说因为{颜色@1}{颜色好@1}。",
    # No goods at all.
    "{人@a}{时候}起来，{天气}。先吃了{吃的}，再去{去处}。路上遇见{人@b}，两个人说了一会儿话，{景}。",
    "{天气}，{店@a}没有什么客人。{店员@a}泡了一壶茶，坐在门口看{人@a}走过去。{景}，一个下午就这样过去了。",
    "{人@a}和{人@b}约好去{去处@a}，谁知{天气}。{人@b}说不如改天，{人@a}{心情}，两个人就在{店@a}吃了{吃的}。",
    "{季节@a}的{店@a}最热闹。{人@a}说{季节@a}适合{去处@a}，{人@b}说{季节@a}适合{去处@b}。{景}。",
]

# Stock cards: what stands before one, between key and value, between pairs; then questions or a reading.
CARD_SHARE = 0.45
CARD_HEADS = ["{店@a}的卡片上写着，", "标签上印着，", "{人@a}的笔记，", "{店员}念道，", "货单，", "{人@a}记下，", "登记，", ""]
CARD_LINKS = ["：", "是", "为", "", " ", "——", "，"]
CARD_JOINTS = ["；", "。", "，再是", "、", " / ", "；还有", "｜"]
CARD_QUESTIONS = [("{人}来问。", "问{key}，答{value}"), ("", "{key}呢？{value}"), ("{人}查了查，", "{key}一栏是{value}"),
                  ("{人}问，{店员}答。", "“{key}？”“{value}。”"), ("原来", "{value}说的是{key}"), ("", "要看{key}，就是{value}")]
CARD_READINGS = [("{人}照着念了一遍：", "，"), ("也就是说，", "、"), ("{店员}数给{人}听，", "，然后是"), ("记住这几个词：", "，"),
                 ("要的是", "，还要"), ("{人}一样一样地找，先是", "，再是"), ("", "，"), ("最后写成", "的、")]

# Dictations: any words in any order, said again or asked for. Nothing in them can be guessed, only looked up, which is
# how so small a model comes to look things up at all.
DICTATION_SHARE = 0.35
ALL_WORDS = sorted({word for words in WORDS.values() for word in words} |
                   {item for kind in KINDS for item in kind["items"]} |
                   {word for kind in KINDS for key, values in kind["attributes"].items() for word in [key, *values]})
DICTATION_HEADS = ["听写：", "跟着念：", "抄一遍：", "{人@a}念，{人@b}写：", "纸条上是"]
DICTATION_AGAIN = ["再来一遍：", "写好了：", "念一次：", "{人@b}写的是", "又一张纸条："]
DICTATION_JOINTS = ["、", "，", "*", " ", "；"]
PAIR_LINKS = ["#", "：", "是", "配", "——"]
PAIR_ANSWERS = ["{key}配{value}", "{key}的是{value}", "{value}", "找{key}，得{value}", "{key}{value}"]

SLOT = re.compile(r"\{([^{}@]+)(?:@(\w+))?\}")
KIND_SLOTS = {"类型": "type", "量": "measure", "动": "verb", "品款": "item_key"}
WASHABLE = [kind for kind in KINDS if "陶瓷" not in kind["attributes"]["材质"]]


class Good:
    """One thing of a document, with a value for each of its attributes."""

    def __init__(self, choose, kinds):
        self._choose = choose
        self._kind = choose.one(kinds)
        self._values = {key: choose.one(list(values)) for key, values in self._kind["attributes"].items()}
        self._feature = choose.one(self._kind["details"] or ["材质"])
        self.item = choose.one(self._kind["items"])

    def differs(self, other):
        """So that two things of one document are never mistaken for each other."""
        return self.item != other.item and not set(self._values.values()) & set(other._values.values())

    def card(self, count):
        """Type, item and some attributes as pairs of key and value, in the order of the table or in any."""
        pairs = [("类型", self._kind["type"]), (self._kind["item_key"], self.item)]
        chosen = self._choose.some(list(self._values), min(count - 2, len(self._values)))
        pairs += [(key, value) for key, value in self._values.items() if key in chosen]
        return pairs if self._choose.chance(0.5) else self._choose.some(pairs, len(pairs))

    def word(self, slot):
        if slot == "品":
            return self.item
        if slot == "特征名":
            return self._feature
        if slot in KIND_SLOTS:
            return self._kind[KIND_SLOTS[slot]]
        key = self._feature if slot.startswith("特征") else slot.removesuffix("好")
        value = self._values[key]
        return self._choose.one(self._kind["attributes"][key][value]) if slot.endswith("好") else value


class Document:
    """Fills the slots of one document and remembers what stands for which label."""

    def __init__(self, choose):
        self._choose = choose
        self._words = {}
        self._goods = {}

    def fill(self, template):
        return SLOT.sub(lambda match: self._word(*match.groups()), template)

    def _word(self, slot, label):
        if label and label[-1].isdigit():
            return self.good(label).word(slot)
        if label and (slot, label) in self._words:
            return self._words[slot, label]
        word = self._new_word(slot)
        if label:
            self._words[slot, label] = word
        return word

    def _new_word(self, slot):
        if slot == "码":
            return str(self._choose.number(1, 250))
        return self._choose.one([word for word in WORDS[slot] if word not in self._words.values()])

    def good(self, label):
        kinds = WASHABLE if label.startswith("洗") else KINDS
        while label not in self._goods:
            good = Good(self._choose, kinds)
            if all(good.differs(other) for other in self._goods.values()):
                self._goods[label] = good
        return self._goods[label]


def write_story(choose):
    template = choose.one(OPENINGS) + choose.one(DOCUMENTS)
    if choose.chance(0.4):
        template += choose.one(DOCUMENTS)
    return Document(choose).fill(template + choose.one(ENDINGS))


def write_card(choose):
    """A stock card of one good, and somebody who reads it out or answers questions about it."""
    document = Document(choose)
    good = document.good("1")
    pairs = good.card(choose.number(3, 6))
    link, joint = choose.one(CARD_LINKS), choose.one(CARD_JOINTS)
    text = document.fill(choose.one(CARD_HEADS)) + joint.join(key + link + value for key, value in pairs) + "。"
    if choose.chance(0.5):
        ask, answer = choose.one(CARD_QUESTIONS)
        asked = choose.some(pairs, choose.number(2, len(pairs)))
        text += document.fill(ask) + "；".join(answer.format(key=key, value=value) for key, value in asked) + "。"
    else:
        before, between = choose.one(CARD_READINGS)
        text += document.fill(before) + between.join(value for _, value in pairs) + "。"
    return text + document.fill(choose.one(ENDINGS))


def write_dictation(choose):
    """Words, and the same words again."""
    document = Document(choose)
    words = choose.some(ALL_WORDS, choose.number(3, 8))
    first, second = choose.one(DICTATION_JOINTS), choose.one(DICTATION_JOINTS)
    text = document.fill(choose.one(DICTATION_HEADS)) + first.join(words) + "。"
    return text + document.fill(choose.one(DICTATION_AGAIN)) + second.join(words) + "。"


def write_pairs(choose):
    """Pairs of words, and for some first words, in any order, the second."""
    words = choose.some(ALL_WORDS, 2 * choose.number(2, 5))
    pairs = list(zip(words[::2], words[1::2]))
    link, joint, answer = choose.one(PAIR_LINKS), choose.one(DICTATION_JOINTS), choose.one(PAIR_ANSWERS)
    asked = choose.some(pairs, choose.number(2, len(pairs)))
    text = joint.join(key + link + value for key, value in pairs) + "。"
    return text + choose.one(["，", "、", "。"]).join(answer.format(key=key, value=value) for key, value in asked) + "。"


def write_document(choose):
    if choose.chance(DICTATION_SHARE):
        return write_pairs(choose) if choose.chance(0.5) else write_dictation(choose)
    return write_card(choose) if choose.chance(CARD_SHARE) else write_story(choose)


def write_documents(choose, size_bytes):
    """Documents of `size_bytes` bytes together (UTF-8), the last one whole."""
    written = 0
    while written < size_bytes:
        text = write_document(choose)
        written += len(text.encode())
        yield {"text": text}

"""What the demo says, in English and Chinese. The starter itself is asked in English, the one language it knows."""

from __future__ import annotations

from collections.abc import Mapping

from anymix.train.report.words import LANGUAGES, texts

PHRASES: dict[str, tuple[str, str]] = {
    "begin": (
        "A model of a million parameters, on this machine, without a network. Everything it makes lies in {out}.",
        "一个百万参数的小模型，就在本机、不联网。所有产物都在 {out}。",
    ),
    "knows": ("\n1. What it knows", "\n1. 它会什么"),
    "new": ("\n2. What it does not: the {word}", "\n2. 它不会什么：{word}"),
    "learn": (
        "\n3. It learns: a LoRA on {new} pictures of the {word}, and {replay} of what it knows, so as not to forget",
        "\n3. 学习：用 {new} 张 {word} 图片训练 LoRA，并掺入 {replay} 张它已认识内容的图片以免遗忘",
    ),
    "learned": ("\n4. After", "\n4. 学习之后"),
    "typed": ("  the same as: {command}", "  等同于：{command}"),
    "judge before": ("asking it", "提问"),
    "judge after": ("asking again", "再次提问"),
    "drawing": ("drawing", "绘制"),
    "training": ("training", "训练"),
    "loss": ("loss", "损失"),
    "share new": ('  answers with "{word}" that are right   {shares}', "  答案含 “{word}” 的问题正确率   {shares}"),
    "share old": ("  old skills                         {shares}", "  原有能力正确率                {shares}"),
    "talk": ("  a conversation about {picture}", "  就 {picture} 对话"),
    "paint": (
        "\n5. A model that draws. It has no word for {word}, and has never met {name}, a ball with a belt and two eyes",
        "\n5. 会画画的模型。它不认识颜色 {word}，也没见过 {name}：一个系腰带、有两只眼睛的球",
    ),
    "learn colour": (
        "\n6. It learns {word}: a LoRA on {new} pictures of it, and {replay} of what it knows",
        "\n6. 学习 {word}：用 {new} 张该颜色的图片训练 LoRA，并掺入 {replay} 张它已会画的图片",
    ),
    "learn subject": (
        "\n7. It learns {name}: DreamBooth on {new} pictures of it, and {replay} of what it knows",
        "\n7. 学习 {name}：用 {new} 张它的图片做 DreamBooth，并掺入 {replay} 张模型已会画的图片",
    ),
    "drawing before": ("drawing", "作画"),
    "drawing after": ("drawing again", "再次作画"),
    "drawn colour": ("  {word} pictures that are right        {shares}", "  {word} 图片正确率   {shares}"),
    "drawn subject": ("  pictures of {name} that are right      {shares}", "  {name} 图片正确率    {shares}"),
    "drawn known": ("  what it knew                        {shares}", "  原有内容正确率    {shares}"),
    "learned colour": ("Drawing a new colour: {word}", "画新颜色：{word}"),
    "learned subject": ("Drawing one thing: {name}", "画特定的东西：{name}"),
    "judged colour": (
        "{count} wishes for {word} and {known} for what it knew, from the same noise before and after. Right is what "
        "shows colour, shape, background, size and place as wished, judged by its pixels.",
        "{count} 个愿望要求 {word}，{known} 个要求它已会画的内容，前后使用相同噪声。"
        "颜色、形状、背景、大小、位置都如愿才算正确，由像素判定。",
    ),
    "judged subject": (
        "{count} wishes for {name} and {known} for what it knew, from the same noise before and after. Right is what "
        "shows ball, belt and both eyes in their places, on the background wished for, judged by its pixels.",
        "{count} 个愿望要求 {name}，{known} 个要求它已会画的内容，前后使用相同噪声。"
        "球、腰带和双眼各在其位、背景如愿才算正确，由像素判定。",
    ),
    "asked for": ("asked for", "要求"),
    "asked colour": ("{word}", "颜色 {word}"),
    "asked subject": ("{name}", "特定的 {name}"),
    "asked known": ("what it knew", "原有内容"),
    "next colour": ("have it draw the new colour", "让它画出新颜色"),
    "next subject": ("have it draw the thing", "让它画出那个东西"),
    "part drawn before": ("drawing before", "学习前作画与判定"),
    "part album": ("making pictures of the colour", "绘制新颜色的图片"),
    "part train colour": ("training the colour", "训练新颜色"),
    "part drawn after": ("drawing the colour after", "学习新颜色后作画与判定"),
    "part photos": ("making pictures of the thing", "绘制特定东西的图片"),
    "part train subject": ("training the thing", "训练特定的东西"),
    "part subject after": ("drawing the thing after", "学习特定东西后作画与判定"),
    "page": ("\nreport: {page}", "\n报告：{page}"),
    "next": ("next, type one of:", "接下来可以输入："),
    "stopped": ("stopped; the same command goes on from here", "已停止；再次输入同一命令即可继续"),
    "next chat": ("ask it about a heart it has not been shown", "就一张它没见过的图片提问"),
    "next train": ("train again with other settings and compare the reports", "换几个设置再训练一次，比较两份报告"),
    "next merge": ("merge what it learned into the model's own files", "把学到的内容合并回模型，保持原始文件格式"),
    "accuracy": ("Before and after", "学习前后"),
    "judged": (
        "{new} questions about hearts it was not trained on ask for the word {word}; {each} questions a kind, about "
        "pictures not trained on either, ask for what it knew. Right is what equals the expected answer to the letter.",
        "{new} 个问题针对未参与训练的 {word} 图片；另外每类 {each} 个问题检查原有能力，图片同样未参与训练。"
        "回答与标准答案逐字相同才算正确。",
    ),
    "new word": ("new word: {word}", "新词：{word}"),
    "old skills": ("old skills, all together", "原有能力合计"),
    "asked": ("asked", "问题"),
    "before": ("before", "之前"),
    "after": ("after", "之后"),
    "time": ("How long each part took", "各部分用时"),
    "part knows": ("questions about drawn pictures", "就绘制的图片提问"),
    "part before": ("judging before", "学习前测评"),
    "part rows": ("drawing the training rows", "绘制训练数据"),
    "part train": ("training", "训练"),
    "part after": ("judging after", "学习后测评"),
}  # fmt: skip


def phrases(language: str) -> Mapping[str, str]:
    """The phrases of en or zh, beside the words every report has. Raises ValueError for another language."""
    if language not in LANGUAGES:
        raise ValueError(f"the demo speaks {' and '.join(LANGUAGES)}, found {language!r}; give --lang one of them")
    return {**texts(language), **{key: both[LANGUAGES.index(language)] for key, both in PHRASES.items()}}

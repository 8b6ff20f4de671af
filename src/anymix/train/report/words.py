"""Every text of the page, in English and Chinese. Messages of the program itself (reasons, rows) stay as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping

LANGUAGES = ("en", "zh")

WORDS: dict[str, tuple[str, str]] = {
    "page": ("Report of the run {name}", "训练报告：{name}"),
    "lang": ("en", "zh-CN"),
    "end": (".", "。"),
    "comma": ("; ", "；"),
    "finished": ("Finished at step {step} of {steps}", "训练完成，第 {step} 步（共 {steps} 步）"),
    "early stop": (
        "Stopped early at step {step} of {steps}, as the validation loss fell no more",
        "验证损失不再下降，在第 {step} 步（共 {steps} 步）提前结束",
    ),
    "stopped": ("Stopped on request at step {step} of {steps}", "按要求停止于第 {step} 步（共 {steps} 步）"),
    "running": (
        "Not finished: still running or cut off, the last step known is {step} of {steps}",
        "尚未完成：仍在运行或被中断，已知最后一步为第 {step} 步（共 {steps} 步）",
    ),
    "loss went": ("the loss of a step went from {first} to {last}", "单步损失由 {first} 变为 {last}"),
    "loss was": ("the loss of its one logged step was {last}", "唯一记录的一步损失为 {last}"),
    "best was": ("the best validation loss is {best}, at step {step}", "最佳验证损失为 {best}（第 {step} 步）"),
    "weights": ("the weights of that step are the ones kept", "保留的是该步的权重"),
    "no validation": ("there was no validation", "未做验证"),
    "no steps": ("No step was logged, so there is nothing to draw.", "没有记录任何一步，因此没有曲线可画。"),
    "curves": ("Curves", "曲线"),
    "loss": ("Loss", "损失"),
    "loss raw": ("each step", "每步"),
    "loss smooth": ("moving average, {window} points", "滑动平均（{window} 点）"),
    "val_loss": ("Validation loss", "验证损失"),
    "best": ("best {best}", "最佳 {best}"),
    "lr": ("Learning rate", "学习率"),
    "grad_norm": ("Gradient norm, before clipping", "梯度范数（裁剪前）"),
    "tokens_per_s": ("Tokens per second", "每秒词元数"),
    "fill": ("Share of the token budget used (packing)", "词元预算使用率（打包）"),
    "tile_balance": ("Tiles of a rank, mean to most (packing)", "各进程图块数：平均与最多之比（打包）"),
    "step": ("step", "步"),
    "at step": ("step {step}", "第 {step} 步"),
    "log": ("logarithmic scale", "对数刻度"),
    "described": (
        "From {first} at step {start} to {last} at step {stop}; lowest {low}, highest {high}.",
        "由第 {start} 步的 {first} 到第 {stop} 步的 {last}；最低 {low}，最高 {high}。",
    ),
    "infinite": (
        "{count} values of {name} were not finite (steps an overflow made the run skip) and stand in no curve.",
        "{name} 有 {count} 个值不是有限数（因溢出而跳过的步），未画入曲线。",
    ),
    "key numbers": ("Key numbers", "关键数值"),
    "first": ("first", "最初"),
    "last": ("last", "最后"),
    "lowest": ("lowest", "最低"),
    "highest": ("highest", "最高"),
    "time": ("Where the time went", "耗时构成"),
    "waiting": ("waiting for data", "等待数据"),
    "computing": ("computing", "计算"),
    "together": ("together", "合计"),
    "part": ("part", "部分"),
    "seconds": ("time", "时间"),
    "share": ("share", "占比"),
    "time note": (
        "Sum of the {count} logged steps of {steps}; half of them took less than {median} s. Opening the model, "
        "validating and saving are not in it.",
        "{steps} 步中有记录的 {count} 步之和，其中一半少于每步 {median} s。不含打开模型、验证与保存的时间。",
    ),
    "starved": (
        "The device waited for data: more data.workers (now {workers}) may help.",
        "设备在等待数据：可尝试增大 data.workers（现为 {workers}）。",
    ),
    "what": ("What was run", "运行内容"),
    "model": ("Model", "模型"),
    "device": ("Device", "设备"),
    "processes": ("Processes", "进程数"),
    "written": ("Written", "写于"),
    "skipped steps": ("Steps skipped by fp16", "fp16 跳过的步"),
    "setting": ("setting", "设置"),
    "value": ("value", "取值"),
    "default": ("default", "默认"),
    "changed": ("Settings that differ from the defaults", "与默认不同的设置"),
    "recipe": ("The whole recipe, with every default", "完整配方（含全部默认值）"),
    "versions": ("Versions", "版本"),
    "environment": ("Settings made for the device", "为设备所做的设置"),
    "command": ("The command that was typed", "所用命令"),
    "data": ("Data", "数据"),
    "rows": ("Rows trained on", "训练行数"),
    "held_out": ("Rows held out", "留出行数"),
    "skipped": ("Rows skipped", "跳过的行"),
    "why skipped": ("Skipped rows and why", "跳过的行及原因"),
    "shortened": ("Rows without their last turns", "去掉末尾轮次的行"),
    "why shortened": ("Shortened rows and what was left out", "被缩短的行及所去掉的内容"),
    "row": ("row", "行"),
    "reason": ("reason", "原因"),
    "more rows": ("and {count} more, all of them in run.json", "另有 {count} 行，全部见 run.json"),
    "samples": ("Answers", "回答示例"),
    "score": ("{right} of {count} right.", "{count} 题答对 {right} 题。"),
    "further": ("Further answers: {count}", "其余回答：{count} 个"),
    "more samples": ("{count} more are not shown.", "另有 {count} 个未显示。"),
    "question": ("question", "问题"),
    "answer": ("answer", "回答"),
    "before": ("before training", "训练前"),
    "reference": ("reference", "参考答案"),
    "pair before": ("before", "之前"),
    "pair after": ("after", "之后"),
    "right": ("right", "正确"),
    "wrong": ("wrong", "错误"),
    "picture": ("picture of sample {number}", "示例 {number} 的图片"),
    "no picture": ("The picture cannot be shown: {error}", "图片无法显示：{error}"),
    "cut": ("… ({count} more characters)", "……（另有 {count} 个字符）"),
    "drawn": ("Pictures", "图片"),
    "untrained": ("before step 1", "第 1 步之前"),
    "at the start": ("at the start", "起始时"),
    "noise %": ("noise, %", "噪声 %"),
    "metric grid/": ("Loss by time, on noise that never changes", "各时刻的损失（噪声固定）"),
    "metric grid": ("Loss on fixed noise and times", "固定噪声与时刻上的损失"),
    "metric grid_gain": ("How much lower it is than at the start", "比起始时降低多少"),
    "metric drift": ("Drift of predictions for generic prompts", "通用提示词上的预测漂移"),
    "metric drift_weights": ("Drift of the weights", "权重漂移"),
    "metric previews/copies": ("Share of previews that copy a training picture", "复制训练图片的预览占比"),
    "metric previews/nearest": ("Distance of the nearest to a training picture", "与训练图片的最近距离"),
    "metric previews/diversity": ("Diversity of the previews of one prompt", "同一提示词预览的多样性"),
    "metric previews/broken": ("Broken previews", "损坏的预览"),
    "gained": (
        "On fixed noise and times the loss at step {step} is {gain} lower than at the start",
        "在固定噪声与时刻上，第 {step} 步的损失比起始时低 {gain}",
    ),
    "lost": (
        "On fixed noise and times the loss at step {step} is {gain} higher than at the start",
        "在固定噪声与时刻上，第 {step} 步的损失比起始时高 {gain}",
    ),
    "give or take": (", give or take {error} (standard error over pictures)", "（对图片的标准误差 {error}）"),
    "next": ("Next", "接下来"),
    "go on": ("go on from the newest checkpoint", "从最新的检查点继续"),
    "chat": ("ask it about a picture", "针对一张图片提问"),
    "predict": ("answer a whole folder", "批量回答文件夹中的图片"),
    "generate": ("draw with it", "用它画图"),
    "export": ("a file for ComfyUI", "导出 ComfyUI 用的文件"),
    "your prompt": ("your prompt", "your prompt"),
    "merge": ("merge it into the model", "合并进模型"),
    "your question": ("What is this?", "这是什么？"),
}


def texts(language: str) -> Mapping[str, str]:
    """The texts of one language, by what they are for. Raises ValueError for one there is no text in."""
    if language not in LANGUAGES:
        raise ValueError(f"the report speaks {' and '.join(LANGUAGES)}, found {language!r}; give one of them")
    return {key: both[LANGUAGES.index(language)] for key, both in WORDS.items()}


def spoken() -> str:
    """The language this machine is set to: zh where its locale is Chinese, else en (POSIX: LC_ALL over LANG)."""
    names = (os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").lower().startswith("zh") else "en"

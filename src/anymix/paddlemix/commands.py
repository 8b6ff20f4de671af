"""A command line of PaddleMIX, read: its flags as a table says them, and what becomes of them here.

A `Flag` is honoured (`to` a recipe key as it stands, or by hand where `sets` names the keys) or answered (`says`);
one that is neither cannot be made, so that none is passed over in silence. A script turns its `Values` into a `Plan`:
a recipe to train, or the words of another anymix command.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

KINDS = {"text": str, "whole": int, "number": float, "switch": bool, "truth": bool, "list": list, "tree": dict}
WORDS = {
    "text": "text", "whole": "a whole number", "number": "a number", "switch": "true or false",
    "truth": "true or false", "list": "a list", "tree": "a mapping",
}  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """A flag of a script, or a key of a config file.

    `kind` is one of `KINDS`: a switch takes no value, a truth may (`--bf16`, `--bf16 True`). `idle` are values that ask
    for what happens anyway: there is nothing to say of them.
    """

    name: str
    kind: str = "text"
    default: Any = None
    to: str = ""  # the recipe key that takes its value as it is
    sets: str = ""  # the keys or options it goes to otherwise
    says: str = ""  # what is said when it is typed
    choices: tuple[str, ...] = ()
    required: bool = False
    idle: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        assert self.kind in KINDS and (self.to or self.sets or self.says), self.name

    @property
    def typed(self) -> str:
        return f"--{self.name}"

    @property
    def unsaid(self) -> str:
        """What holds where it is not typed, for a table."""
        return (
            "required" if self.required else "" if self.default is None or self.default is False else f"{self.default}"
        )

    @property
    def here(self) -> str:
        """Where it goes, for a table: recipe keys, and what is said otherwise."""
        return "; ".join(text for text in (self.to, self.sets, self.says) if text)


Owners = Callable[[str], Mapping[str, Flag]]  # of a flag's name: the scripts that have it, and what it is there


class Values(Mapping[str, Any]):
    """What a command says: the value of every flag, that of the script where it was not typed."""

    def __init__(self, flags: Iterable[Flag], given: Mapping[str, Any], dashed: bool = True) -> None:
        self.flags = tuple(flags)
        self.given = given
        self.dashes = "--" if dashed else ""
        self._all = {flag.name: given.get(flag.name, flag.default) for flag in self.flags}

    def __getitem__(self, name: str) -> Any:
        return self._all[name]

    def __iter__(self) -> Any:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def typed(self, name: str) -> bool:
        return name in self.given


@dataclass
class Plan:
    """What a command is here: `tree`, a recipe, or `words`, another anymix command; and what is to be said of it."""

    tree: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    says: list[str] = field(default_factory=list)
    findings: list[int] = field(default_factory=list)

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key of the recipe."""
        section, leaf = self._place(key)
        section[leaf] = value

    def add(self, key: str, *values: str) -> None:
        """Add to a list of the recipe what is not in it."""
        section, leaf = self._place(key)
        there = section.setdefault(leaf, [])
        there += [value for value in values if value not in there]

    def _place(self, key: str) -> tuple[dict[str, Any], str]:
        *sections, leaf = key.split(".")
        tree = self.tree
        for section in sections:
            tree = tree.setdefault(section, {})
        return tree, leaf

    def say(self, sentence: str) -> None:
        if sentence not in self.says:
            self.says.append(sentence)

    def found(self, *numbers: int) -> None:
        """What theirs does wrong and this does not: numbers of `findings.FINDINGS`."""
        self.findings += [number for number in numbers if number not in self.findings]

    def take(self, values: Values) -> None:
        """The flags that are one key each, and the answers to those that are none."""
        for flag in values.flags:
            value = values[flag.name]
            if flag.to and value is not None:
                self.put(flag.to, value)
            if flag.says and values.typed(flag.name) and value not in flag.idle:
                self.say(f"{values.dashes}{flag.name}: {flag.says}")


@dataclass(frozen=True)
class Script:
    """One of their scripts. `plan` turns what was typed into what is done here."""

    name: str
    flags: tuple[Flag, ...]
    plan: Callable[[Values], Plan]
    about: str = ""
    positional: str = ""  # the flag that a bare word is for: a config's file
    variables: tuple[Flag, ...] = ()  # what it reads from the environment, or from before its name
    keys: tuple[Flag, ...] = ()  # of the file that `positional` is for

    @property
    def listed(self) -> dict[str, Flag]:
        """What can be said to it, as it is typed: flags, keys of its file, or variables."""
        said = self.keys or self.flags
        return {flag.name if self.keys else flag.typed: flag for flag in said} | {v.name: v for v in self.variables}

    def read(self, words: Sequence[str], environ: Mapping[str, str], owners: Owners) -> Values:
        """The values of a command line; `owners` tells which scripts have a flag of a name.

        Raises ValueError in a sentence for a flag or value this script has not."""
        said = {flag: environ.get(flag.name) for flag in self.variables}
        given = {flag.name: _of_variable(flag, text) for flag, text in said.items() if text}
        return Values((*self.flags, *self.variables), given | _parsed(self, words, owners))


def _instead(script: Script) -> str:
    return f"{', '.join(flag.name for flag in script.variables)} may be typed before it, as NAME=value"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def _of_variable(flag: Flag, text: str) -> Any:
    try:
        return made(flag, _from_text(flag.kind, text))
    except ValueError as error:
        raise ValueError(f"{flag.name}={text}: {error}") from None


def _parsed(script: Script, words: Sequence[str], owners: Owners) -> dict[str, Any]:
    if script.positional and words and not words[0].startswith("-"):
        words = [f"--{script.positional}={words[0]}", *words[1:]]
    parser = _Parser(script.name, allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    for flag in script.flags:
        extra: dict[str, Any] = {"dest": flag.name, "default": argparse.SUPPRESS}
        if flag.kind == "switch":
            extra["action"] = "store_true"
        elif flag.kind == "truth":
            extra |= {"nargs": "?", "const": True, "type": _reader(flag)}
        elif flag.kind == "list":
            extra |= {"nargs": "+"}
        else:
            extra["type"] = _reader(flag)
        parser.add_argument(flag.typed, **extra)
    found, unknown = parser.parse_known_args(_negatives_joined(words))
    if unknown:
        if not script.flags:
            raise ValueError(f"{script.name} takes no flags, as in theirs, found {unknown[0]}; {_instead(script)}")
        raise ValueError(f"{script.name} has no {_nearest(script, unknown[0], owners)}")
    missing = [flag.typed for flag in script.flags if flag.required and flag.name not in vars(found)]
    if script.positional and missing:
        raise ValueError(f"{script.name} takes one word, the {script.positional}; write it after the name")
    if missing:
        raise ValueError(f"{script.name} needs {' and '.join(missing)}, as in their script; add it")
    return vars(found)


def _negatives_joined(words: Sequence[str]) -> list[str]:
    """`--weights -1` holds a value, which argparse would take for a flag: written `--weights=-1` it does not."""
    joined: list[str] = []
    for word in words:
        negative = word.startswith("-") and word[1:2].isdigit()
        if negative and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _reader(flag: Flag) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return made(flag, _from_text(flag.kind, text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _from_text(kind: str, text: str) -> Any:
    if kind in ("truth", "switch"):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)
    if kind in ("whole", "number"):
        try:
            return KINDS[kind](text)
        except ValueError:
            return text
    return None if kind == "text" and text == "None" else text


def made(flag: Flag, value: Any) -> Any:
    """A value of the flag's kind and choices. Raises ValueError: what it should have been."""
    if value is None and not flag.required and None in (flag.default, *flag.idle):
        return None
    if flag.kind == "number" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, KINDS[flag.kind]) or (flag.kind == "whole" and isinstance(value, bool)):
        raise ValueError(f"expected {WORDS[flag.kind]}, found {value!r}")
    if isinstance(value, list) and (wrong := [part for part in value if not isinstance(part, str)]):
        raise ValueError(f"expected a list of texts, found {wrong[0]!r} in it")
    if flag.choices and value not in flag.choices:
        raise ValueError(f"expected {', '.join(flag.choices)}, found {value!r}")
    return value


def _nearest(script: Script, word: str, owners: Owners) -> str:
    """An unknown flag, and what was probably meant: this script's for the same key, or one of a name like it."""
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return f"place for {word!r}: every value stands behind a flag"
    of_others = owners(flag.removeprefix("--"))
    if of_others:
        keys = {other.to or other.sets for other in of_others.values()} - {""}
        same = [known.typed for known in script.flags if (known.to or known.sets) in keys]
        near = difflib.get_close_matches(flag, same, n=1, cutoff=0.0)
        tail = f", did you mean {near[0]}?" if near else "; leave it out"
        return f"{flag}: it is a flag of {', '.join(of_others)}{tail}"
    near = difflib.get_close_matches(flag, [known.typed for known in script.flags], n=1, cutoff=0.75)
    if near:
        return f"{flag}, did you mean {near[0]}?"
    return f"{flag}; `anymix paddlemix {script.name}` alone lists its flags"


def read_keys(name: str, flags: Sequence[Flag], tree: Mapping[str, Any]) -> Values:
    """The values of a config file. Raises ValueError for a key nobody reads, or a value of another kind."""
    known = {flag.name: flag for flag in flags}
    given = {}
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            tail = f", did you mean {near[0]}?" if near else "; take it out"
            raise ValueError(f"{name}: no key {key}, which PaddleMIX would have passed over in silence{tail}")
        try:
            given[key] = made(known[key], value)
        except ValueError as error:
            raise ValueError(f"{name}: {key}: {error}") from None
    missing = [flag.name for flag in flags if flag.required and given.get(flag.name) is None]
    if missing:
        raise ValueError(f"{name} says no {' and no '.join(missing)}; add it")
    return Values(flags, given, dashed=False)

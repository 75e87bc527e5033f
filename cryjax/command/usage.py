"""What `--help` prints: what the program does, its flags, and the fields of a recipe.

The fields are read from the text of the recipe, which is not run: each with its default and the
comment above it.
"""

import ast
import dataclasses
import io
import pathlib
import re
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from cryjax.command.errors import UserError

_WIDTH = 100
_RECIPE = re.compile(r"\w+\.py")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a recipe.

    Attributes:
      name: dotted.
      default: as written in the recipe.
      comment: above it, or above the lines that it is grouped with.
    """

    name: str
    default: str
    comment: str


def _comments(text: str) -> dict[int, str]:
    """Line -> the comment that is alone on it."""
    lines = text.splitlines()
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and lines[token.start[0] - 1].lstrip().startswith("#")
    }


def _dotted(node: ast.expr) -> str:
    """'encoder.name' for `config.encoder.name`; '' for anything else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed(names)) if isinstance(node, ast.Name) and node.id == "config" else ""


def _group(value: ast.expr) -> ast.Dict | None:
    """The dictionary in `ConfigDict({...})`, or `value` if it is one."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("ConfigDict"):
        value = value.args[0]
    return value if isinstance(value, ast.Dict) else None


def _leaves(name: str, value: ast.expr) -> Iterator[tuple[str, str]]:
    group = _group(value)
    if group is None:
        yield name, ast.unparse(value)
        return
    for key, part in zip(group.keys, group.values, strict=True):
        yield from _leaves(f"{name}.{ast.literal_eval(key or ast.Constant(''))}", part)


def fields(path: pathlib.Path) -> list[Field]:
    """The fields of a recipe, in its order. A nested recipe is one field.

    Raises:
      UserError: if the file cannot be read, or is not Python with a `get_config`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        comments = _comments(text)
    except (OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--config={path}: cannot be read ({reason}); give a recipe like those in configs/"
        ) from error
    function = next(
        (
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "get_config"
        ),
        None,
    )
    if function is None:
        raise UserError(f"--config={path}: has no get_config; give a recipe like those in configs/")
    found: list[Field] = []
    above, end = "", 0
    for node in function.body:
        if not isinstance(node, ast.Assign) or not (name := _dotted(node.targets[0])):
            continue
        # The comment directly above; without one, and with no empty line between, the last one.
        place = node.lineno - 1
        lines: list[str] = []
        while place in comments:
            lines.insert(0, comments[place])
            place -= 1
        if lines:
            above = " ".join(lines)
        elif node.lineno != end + 1:
            above = ""
        end = node.end_lineno or 0
        found += [Field(*leaf, above) for leaf in _leaves(name, node.value)]
    return found


def _wrapped(text: str, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, _WIDTH, initial_indent=space, subsequent_indent=space)


def _of_recipe(path: pathlib.Path) -> list[str]:
    """The fields as lines, grouped below their comments."""
    lines: list[str] = []
    comment = ""
    for field in fields(path):
        if field.comment and field.comment != comment:
            lines += ["", *_wrapped(field.comment, 2)]
            comment = field.comment
        try:
            lines.append(f"    --config.{field.name}={_for_shell(ast.literal_eval(field.default))}")
        except ValueError:  # a nested recipe
            other = _RECIPE.search(field.default)
            what = f"as in {path.with_name(other[0])}" if other else "as the recipe builds them"
            note = f"({what}; the following are set here)"
            lines.append(f"    --config.{field.name}.FIELD=...    {note}")
    return lines


def _for_shell(value: Any) -> str:
    text = str(value)
    return f'"{text}"' if any(c in text for c in " ()'\"") else text


def _of_flags(script: str) -> list[str]:
    lines = []
    for flag in flags.FLAGS.get_key_flags_for_module(script):
        values = getattr(flag.parser, "enum_values", None)
        takes = "" if flag.boolean else "=" + ("|".join(values) if values else flag.name.upper())
        default = f" (default: {flag.default})" if flag.default not in (None, "", [], False) else ""
        lines += [f"  --{flag.name}{takes}", *_wrapped(f"{flag.help}{default}", 6)]
    return lines


def text(purpose: str, argv: Sequence[str]) -> str:
    """The help of the running program.

    Args:
      purpose: its docstring: what it does, and how to call it.
      argv: the command line; a recipe that it names is described.

    Raises:
      UserError: if that recipe cannot be read.
    """
    lines = [purpose.strip(), "", "Flags:", *_of_flags(argv[0])]
    if "config" in flags.FLAGS:
        given = [
            argument.partition("=")[2] or following
            for argument, following in zip(argv, [*argv[1:], ""], strict=True)
            if argument.lstrip("-").partition("=")[0] == "config" and argument.startswith("-")
        ]
        if given:
            lines += ["", f"Fields of {given[-1]}, each with its default:"]
            lines += _of_recipe(pathlib.Path(given[-1]))
        else:
            lines += ["", "The fields of a recipe, with their defaults: --config=RECIPE.py --help"]
    return "\n".join(lines)

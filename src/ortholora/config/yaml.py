"""YAML of a configuration: what it may hold, and every way in which it fails as one kind of error.

PyYAML follows YAML 1.1 and fails over odd values with whatever Python raises. Here `5e-4` is a number, `1:30` is a text
and not 90, a key that appears twice is refused, and no file is too deep, too large or too often repeated to be read.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

#: Deepest nesting, and most values when anchors are written out. The largest example has a depth of 4.
DEEPEST, MOST = 50, 100_000
_TOO_DEEP = f"nested more than {DEEPEST} levels deep"
#: Most characters of a text.
LONGEST = 500_000

#: Numbers as YAML 1.2 has them: no `1:30` in base 60, no `010` in base 8, but `5e-4`, which YAML 1.1 reads as text.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
}


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without the traps of YAML 1.1, and with errors of its own only."""

    depth = 0

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        if self.flow_level > DEEPEST:  # already here: the scanner looks far ahead, at every bracket
            raise yaml.scanner.ScannerError(None, None, _TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # of int, float, datetime, base64, a dictionary: whatever a value makes them raise
            kind = node.tag.rpartition(":")[2]
            shown = f"`{node.value[:80]}`" if isinstance(node.value, str) else "this"
            raise yaml.constructor.ConstructorError(None, None, f"{shown} is no {kind}", node.start_mark) from None

    def construct_yaml_number(self, node: yaml.ScalarNode) -> Any:
        """A number, also one that `!!int` or `!!float` asks for; never one in base 60."""
        if ":" in node.value:
            raise ValueError(node.value)
        return self.construct_yaml_int(node) if node.tag.endswith("int") else self.construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key_node.value[:80]}` appears twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST:  # `<<` of `<<` of `<<`: a few lines multiply to billions
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST:,} keys", node.start_mark)


class _Dumper(yaml.SafeDumper):
    """`yaml.safe_dump` that quotes the text "5e-4", since `_Loader` would read a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list("-+0123456789."))
    _Loader.add_constructor(_tag, _Loader.construct_yaml_number)
    _Dumper.add_implicit_resolver(_tag, _pattern, list("-+0123456789."))


def parse(text: str) -> Any:
    """Read a text in YAML.

    Raises:
        yaml.YAMLError: It is none, or larger or deeper than any configuration.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"{len(text):,} characters, more than the {LONGEST:,} that are read")
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError:
        raise
    except Exception as error:  # of the scanner, over an escape such as "\U00110000"
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None
    _check_size(value)
    return value


def dump(value: Any) -> str:
    """Return plain data as YAML that `parse` reads back to the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _check_size(value: Any) -> None:
    """Refuse a value that anchors make endless, or as large as a file that nobody wrote."""
    sizes: dict[int, int | None] = {}

    def size(value: Any) -> int:
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = None  # being counted
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(map(size, parts))
        found = sizes[id(value)]
        if found is None:
            raise yaml.YAMLError("an anchor that holds itself")
        if found > MOST:
            raise yaml.YAMLError(f"more than {MOST:,} values")
        return found

    size(value)


def problem_of(error: yaml.YAMLError) -> str:
    """What is wrong, and where."""
    problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "not readable")
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem

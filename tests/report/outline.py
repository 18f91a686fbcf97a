"""What a browser would make of a page, as far as the tests ask: elements with their attributes, text and ancestors."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "wbr", "input"}


@dataclass(eq=False)
class Element:
    """One element. `text` is everything in it, white space collapsed."""

    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: "list[Element | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self._words()).split())

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def _words(self) -> list[str]:
        return [word for child in self.children for word in ([child] if isinstance(child, str) else child._words())]

    def all(self, tag: str = "", name: str = "") -> "list[Element]":
        """Everything beneath, in document order, with this tag and class name."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if (not tag or child.tag == tag) and (not name or name in child.classes):
                    found.append(child)
                found.extend(child.all(tag, name))
        return found

    def inside(self, tag: str) -> bool:
        return self.parent is not None and (self.parent.tag == tag or self.parent.inside(tag))


class _Builder(HTMLParser):
    """Refuses what a browser would mend: every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.at = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            opened = self.at.children[-1]
            assert isinstance(opened, Element)
            self.at = opened

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}; a quote in a value escaped it?"
        self.at.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, (
            f"line {self.getpos()[0]}: </{tag}> closes <{self.at.tag}>: the template is unbalanced"
        )
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def parse(html: str) -> Element:
    """The document as a tree."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    assert builder.at is builder.root, f"<{builder.at.tag}> is never closed"
    return builder.root

"""A row of the table of settings: what is said of each of them in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from .kinds import Kind


@dataclass(frozen=True)
class Row:
    """What the table says of a setting."""

    name: str
    default: object
    kind: Kind
    label: str
    tooltip: str
    slider: tuple[float, float, float] | None = None
    """Lowest value, highest value and step of its slider; it may leave out what `kind` allows."""
    placeholder: str = ""
    """An example of a text of several lines."""
    group: str = ""
    """"source" or "control": what it has an effect with."""
    key: str = ""
    """Its key in API requests and messages: its name, except where Python reserves that."""
    kind_with_source: Kind | None = None
    """What is allowed with a source video, where that is more."""

    def kind_for(self, source: str) -> Kind:
        """What is allowed with that source, "" for none."""
        return self.kind_with_source if source and self.kind_with_source else self.kind


def setting(default, kind: Kind, label: str, tooltip: str, **more):
    """A field of a class of settings, with what is said of it."""
    return field(default=default, metadata={"kind": kind, "label": label, "tooltip": tooltip, **more})

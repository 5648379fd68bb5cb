"""What the doctor finds."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A thing that the doctor looked at.

    Attributes:
      what: it is, for people.
      value: a number or a text.
      unit: of the number.
      wrong: what is wrong and what to do, in one sentence; "" if it is as it should be.
    """

    what: str
    value: float | str
    unit: str = ""
    wrong: str = ""

    @property
    def text(self) -> str:
        """The value with its unit, and whether it is as it should be."""
        value = self.value if isinstance(self.value, str) else f"{self.value:,.4g}"
        return " ".join(filter(None, [value, self.unit, "WRONG" if self.wrong else ""]))

"""A small way of drawing: shapes and words on a grid of pixels, the same bytes every time, readable by day and by night.

Numbers are written with one decimal, so that the last bits of a processor do not show. Colours are named by what they mean,
and a style within the picture turns them over where the reader's system is dark.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

LETTER = {"code": 7.3, "small": 5.9, "bold": 7.6}  # about how wide a letter is, in pixels
WIDTH = 480  # a phone shows a picture of this width with its words at some 10 pixels
STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1f2937}
.small{font-size:11px}.bold{font-weight:600}
.code{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:12px}
.soft{fill:#5b6472}.first{fill:#1d4ed8}.second{fill:#b45309}.on{fill:#ffffff}
.line{stroke:#1f2937}.softline{stroke:#9aa3af}.firstline{stroke:#1d4ed8}.secondline{stroke:#b45309}
.box{fill:#eef1f5}.empty{fill:none}
@media(prefers-color-scheme:dark){text{fill:#e5e7eb}
.soft{fill:#a6afbd}.first{fill:#8ab4ff}.second{fill:#f5b041}.on{fill:#101318}
.line{stroke:#e5e7eb}.softline{stroke:#6b7484}.firstline{stroke:#8ab4ff}.secondline{stroke:#f5b041}
.box{fill:#2a303b}}
"""


def number(value: float) -> str:
    """One decimal at most; no minus before a zero."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


class Drawing:
    """A picture that is added to, shape by shape.

    Args:
        height: in pixels.
        title: what it shows, in a few words, for readers that do not see it.
        width: in pixels.
    """

    def __init__(self, height: int, title: str, width: int = WIDTH) -> None:
        self.height, self.width, self.title = height, width, title
        self.parts: list[str] = []

    def text(self, x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> None:
        """Words with their base line at y; `kind` names the style's classes; anchor: start, middle or end."""
        width = len(said) * next((per for name, per in LETTER.items() if name in kind.split()), 7.0)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        if not -2 <= left <= left + width <= self.width + 2:
            raise ValueError(
                f"{said!r} would be cut off: it reaches from {left:.0f} to {left + width:.0f} of {self.width}"
            )
        classes = f' class="{kind}"' if kind else ""
        at = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text x="{number(x)}" y="{number(y)}"{classes}{at}>{escape(said)}</text>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        kind: str = "box",
        *,
        round_by: float = 3,
        shade: float = 1,
    ) -> None:
        """A rectangle, filled and framed as `kind` says; `shade` in [0, 1] lets what is behind shine through."""
        faint = "" if shade == 1 else f' fill-opacity="{shade:.2f}"'
        self.parts.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" '
            f'rx="{number(round_by)}" class="{kind}"{faint}/>'
        )

    def line(
        self, points: Iterable[tuple[float, float]], kind: str = "line", *, width: float = 1.5, dashed: bool = False
    ) -> None:
        """A line through points."""
        way = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        dashes = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{way}" class="{kind}" fill="none" stroke-width="{number(width)}"{dashes}/>'
        )

    def arrow(self, x0: float, y0: float, x1: float, y1: float, kind: str = "line", *, width: float = 1.5) -> None:
        """A straight line that ends in a head."""
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        self.line([(x0, y0), (x1, y1)], kind, width=width)
        left = (x1 - 7 * ux - 4 * uy, y1 - 7 * uy + 4 * ux)
        right = (x1 - 7 * ux + 4 * uy, y1 - 7 * uy - 4 * ux)
        self.line([left, (x1, y1), right], kind, width=width)

    def dot(self, x: float, y: float, kind: str = "first", *, radius: float = 4) -> None:
        """A filled circle."""
        self.parts.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" class="{kind}"/>')

    def axes(self, x: float, y: float, width: float, height: float, below: str, above: str) -> None:
        """Two axes from their corner at the lower left, each with its name."""
        self.line([(x, y - height), (x, y), (x + width, y)], "softline")
        self.text(x + width, y + 30, below, "soft small", "end")
        self.text(x - 4, y - height - 9, above, "soft small")

    def svg(self) -> str:
        """The picture as a file."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n"
        )

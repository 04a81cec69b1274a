"""One run is one folder: what is in it, and who reads it."""

from drawing import Drawing

FILES = (
    ("plan.toml", "all that repeats the run", "incop search"),
    ("levels.jsonl", "a line a level", "incop show"),
    ("checks.jsonl", "a line a check: flow, distance, verdict", "incop replay"),
    ("summary.json", "levels, ledger, environment", "incop report"),
    ("level_03/", "weights and masks of the ticket", "incop measure"),
    ("checkpoint/", "what going on needs, while it runs", "incop resume"),
)


def draw() -> str:
    out = Drawing(264, "The files of a run folder, and the commands that read them")
    out.text(14, 22, "runs/first/", "code bold")
    for row, (name, what, reader) in enumerate(FILES):
        y = 36 + row * 36
        out.line([(20, y - 6 if row else y - 8), (20, y + 14), (30, y + 14)], "softline")
        out.box(32, y, 104, 28)
        out.text(40, y + 18, name, "code")
        out.text(146, y + 18, what, "small")
        out.text(466, y + 18, reader, "code first", "end")
    return out.svg()

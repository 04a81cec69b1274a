"""A level is one round of prune, rewind, retrain; level 0 is the dense network."""

from drawing import Drawing


def draw() -> str:
    out = Drawing(206, "Levels: the dense network, then rounds of prune, rewind, retrain; each yields a ticket")
    x = 14.0
    for name, width, sparsity in (
        ("level 0", 120, "0"),
        ("1", 54, "0.20"),
        ("2", 54, "0.36"),
        ("…", 30, ""),
        ("last", 132, "0.90"),
    ):
        if sparsity not in ("", "0"):
            out.line([(x, 52), (x, 132)], "secondline", width=2.5)
        out.box(x + 2, 62, width - 4, 46, "first" if sparsity else "empty", shade=0.85 if width > 100 else 0.55)
        out.text(x + width / 2, 48, name, "bold", "middle")
        if sparsity:
            out.text(x + width / 2, 90, "train in full" if width > 100 else "train", "on small", "middle")
            out.text(x + width / 2, 128, sparsity, "small", "middle")
            out.dot(x + width - 4, 150, "second", radius=4)
        else:
            out.text(x + width / 2, 90, "…", "", "middle")
        x += width + 14
    out.text(14, 20, "sparsity grows from level to level", "soft small")
    out.text(14, 174, "orange line: prune and rewind", "small second")
    out.text(14, 194, "orange dot: the ticket that the level yields", "small second")
    return out.svg()

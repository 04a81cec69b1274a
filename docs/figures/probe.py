"""Where the probe comes from: the training part, never the test split."""

from drawing import Drawing


def draw() -> str:
    out = Drawing(230, "The data: training part with the probe in it, validation part, test split apart")
    out.text(14, 24, "training images as they come", "soft small")
    out.text(372, 24, "test images", "soft small")
    out.box(14, 34, 262, 54)
    out.text(24, 56, "training part", "bold")
    out.text(24, 76, "what the weights are trained on", "small")
    out.box(280, 34, 76, 54)
    out.text(284, 56, "validation", "bold small")
    out.text(284, 76, "accuracy", "small")
    out.box(372, 34, 94, 54)
    out.text(380, 56, "test", "bold")
    out.text(380, 76, "read once", "small")
    out.box(196, 96, 80, 30, "first", shade=0.9)
    out.text(236, 116, "probe", "on bold", "middle")
    for x, y0, name, kind in (
        (236, 128, "flow, damage", "first"),
        (318, 90, "rules", ""),
        (419, 90, "the record of a ticket", ""),
    ):
        out.arrow(x, y0 + 2, x, 164, "firstline" if kind else "line")
        out.text(x if x < 400 else 466, 182, name, f"small {kind}".strip(), "middle" if x < 400 else "end")
    out.text(14, 206, "The probe is drawn by the seed; what it costs is in the ledger.", "soft small")
    out.text(14, 222, "The test split decides nothing.", "soft small")
    return out.svg()

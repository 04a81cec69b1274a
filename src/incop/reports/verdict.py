"""The verdict: what a run or a comparison says, in sentences that go no further than its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from incop.records import full_retraining
from incop.reports.costs import costs_of_ticket
from incop.reports.recorded import RecordedComparison, RecordedRun, reported
from incop.reports.statistics import FEWEST, ComparisonAnalysis, Difference, Summary


def points(difference: float) -> str:
    """Return a difference of accuracies in points, with its sign."""
    value = round(100 * difference, 2) + 0.0
    return f"{value:+.2f}".replace("-", "−")


def of_run(recorded: RecordedRun) -> list[str]:
    """Say what a run reached and what it cost, the main sentence first."""
    run = recorded.run
    said = []
    if run.status != "finished":
        error = f": {run.error}" if run.error else ""
        have = f"{len(run.levels)} level{'s' if len(run.levels) != 1 else ''}"
        said.append(f"This run is not finished ({run.status}{error}); it has {have} so far.")
    if not run.levels:
        return [*said, "There is no finished level to report."]
    dense = run.dense.get("test_accuracy")
    tickets = reported(run.levels)
    if not tickets:
        reached = f" and has a test accuracy of {dense:.4f}" if isinstance(dense, int | float) else ""
        only = "Only the dense network has been trained" if len(run.levels) == 1 else "No ticket has been reported yet"
        return [*said, f"{only}{reached if len(run.levels) == 1 else ''}."]
    ticket = tickets[-1]
    _, total, _ = costs_of_ticket(run.levels, ticket.level)
    full = full_retraining([level for level in run.levels if level.level <= ticket.level])
    instead = f", where full retraining takes {round(full, 2):g} ({total.epochs / full:.0%})" if full else ""
    against = ""
    if isinstance(dense, int | float) and ticket.test_accuracy is not None:
        gap = points(ticket.test_accuracy - dense)
        against = f", {gap} points against the dense network's {dense:.4f}"
    said.append(
        f"At sparsity {ticket.sparsity:.3f} the ticket of level {ticket.level} has test accuracy "
        f"{ticket.test_accuracy:.4f}{against}, after {total.epochs:.4g} epochs of retraining{instead}."
    )
    if total.probe_samples:
        said.append(
            f"Probing cost another {total.probe_epochs:.3g} epochs' worth of samples and {total.probe_seconds:.3g} s "
            f"beside {total.seconds:.3g} s of training."
        )
    said.append("One run of one seed has no interval: compare several seeds before you believe a difference.")
    return said


def of_comparison(comparison: RecordedComparison, analysis: ComparisonAnalysis) -> list[str]:
    """Say what a comparison shows, the main sentence first."""
    if not analysis.summaries:
        return ["There is nothing to compare yet: no finished run has a ticket at a sparsity that was asked for."]
    places = {(s.data, s.model, s.target) for s in analysis.summaries}
    controlled = list(dict.fromkeys(d.label for d in analysis.differences if d.role == "control"))
    said = [_lead(controlled, comparison, analysis, len(places))]
    methods = [label for label in comparison.labels if label not in comparison.controls]
    for label in methods:
        said += _against_reference(label, analysis)
        said += _against_controls(label, analysis)
    said += _caution(analysis)
    return said


def _lead(controlled: Sequence[str], comparison: RecordedComparison, analysis: ComparisonAnalysis, places: int) -> str:
    everywhere = _count(places, "setting")
    if controlled:
        wins = {label: _wins(label, comparison, analysis) for label in controlled}
        winners = [f"{label} (in {len(won)} of {everywhere})" for label, won in wins.items() if won]
        if winners:
            return f"Better than all of its own controls: {_listed(winners)}."
        names = controlled[0] if len(controlled) == 1 else f"None of {_listed(controlled)}"
        verb = "is not shown" if len(controlled) == 1 else "is shown"
        anywhere = "" if places == 1 else f" in any of {everywhere}"
        return f"{names} {verb} to be better than all of its controls{anywhere}."
    if analysis.reference:
        compared = [d for d in analysis.differences if d.role == "reference"]
        if not compared:
            return f"Only {analysis.reference} has finished: there is nothing to hold it against."
        good = sum(d.verdict == "non-inferior" for d in compared)
        return f"Against {analysis.reference}, {good} of {_count(len(compared), 'comparison')} are non-inferior."
    labels = dict.fromkeys(s.label for s in analysis.summaries)
    return f"{_listed(labels)} side by side; without a control or a full method among them, there is no verdict."


def _wins(label: str, comparison: RecordedComparison, analysis: ComparisonAnalysis) -> set[tuple[str, str, float]]:
    """Return the settings in which a method is better than all of its controls, none of them missing."""
    outcomes: dict[tuple[str, str, float], list[str]] = {}
    wanted = sum(label in methods for methods in comparison.controls.values())
    for d in analysis.differences:
        if d.role == "control" and d.label == label:
            outcomes.setdefault((d.data, d.model, d.target), []).append(d.outcome)
    return {place for place, found in outcomes.items() if found.count("better") == wanted}


def _against_reference(label: str, analysis: ComparisonAnalysis) -> list[str]:
    found = [d for d in analysis.differences if d.role == "reference" and d.label == label]
    if not found:
        return []
    verdicts = _tally(found, "verdict", ("non-inferior", "undecided", "inferior"))
    weakest = min(found, key=lambda d: d.accuracy.mean)
    gap = weakest.accuracy
    interval = "" if gap.low is None or gap.high is None else f" [{points(gap.low)}, {points(gap.high)}]"
    cost = _cost_against(label, analysis)
    same = ", identical in every seed" if weakest.identical else ""
    return [
        f"{label} against {analysis.reference}, margin {100 * analysis.margin:g} points: {verdicts} of "
        f"{_count(len(found), 'setting')}{cost}. At its weakest ({weakest.data}, {weakest.model}, "
        f"sparsity {weakest.target:g}): {points(gap.mean)}{interval} points (n = {gap.n}{same})."
    ]


def _cost_against(label: str, analysis: ComparisonAnalysis) -> str:
    by_place: dict[tuple[str, str, float], dict[str, Summary]] = {}
    for s in analysis.summaries:
        by_place.setdefault((s.data, s.model, s.target), {})[s.label] = s
    pairs = [(m[label], m[analysis.reference]) for m in by_place.values() if label in m and analysis.reference in m]
    search = [a.search_epochs.mean / b.search_epochs.mean for a, b in pairs if b.search_epochs.mean > 0]
    total = [a.total_epochs.mean / b.total_epochs.mean for a, b in pairs if b.total_epochs.mean > 0]
    parts = [f"{_range(search)} of its search epochs"] if search else []
    parts += [f"{_range(total)} of all its epochs after the dense network"] if total else []
    return f", for {' and '.join(parts)}, probing included" if parts else ""


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0%}", f"{max(values):.0%}"
    return low if low == high else f"{low} to {high}"


def _against_controls(label: str, analysis: ComparisonAnalysis) -> list[str]:
    found = [d for d in analysis.differences if d.role == "control" and d.label == label]
    if not found:
        return []
    controls = list(dict.fromkeys(d.against for d in found))
    kinds = ("better", "worse", "not told apart", "identical in every seed")
    parts = []
    for kind in kinds:
        counts = {c: [d.outcome for d in found if d.against == c] for c in controls}
        names = [f"{c} ({outs.count(kind)} of {len(outs)})" for c, outs in counts.items() if kind in outs]
        if names:
            how = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from"}
            parts.append(f"{how.get(kind, 'identical in every seed to')} {_listed(names)}")
    return [f"{label} against its controls: {'; '.join(parts)}."]


def _caution(analysis: ComparisonAnalysis) -> list[str]:
    counts = [d.accuracy.n for d in analysis.differences]
    if not counts or min(counts) > FEWEST:
        return []
    if min(counts) < FEWEST:
        return [
            f"Where fewer than {FEWEST} seeds can be paired, no difference is called one, "
            "and an interval is only a hint."
        ]
    return [
        "Five seeds are few: the sign-flip test cannot give a p below 0.0625, so two methods are told apart when the "
        "interval leaves out 0 and all five seeds agree on the sign; a 95 % interval of five values covers less."
    ]


def _tally(found: Sequence[Difference], name: str, order: Iterable[str]) -> str:
    values = [getattr(d, name) for d in found]
    return _listed([f"{kind} in {values.count(kind)}" for kind in order if kind in values])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Iterable[str]) -> str:
    given = list(names)
    return given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}"

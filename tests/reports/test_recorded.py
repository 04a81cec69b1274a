import dataclasses
import json

import pytest

from incop.errors import InputError
from incop.records import Level
from incop.reports.costs import TicketCost, costs_of_ticket, samples_per_epoch
from incop.reports.recorded import RecordedComparison, RecordedRun, read, read_comparison, read_run, reported, together
from incop.rundir import RunDir

from .conftest import BUDGET, METHODS, TARGETS, level_of, read_jobs, write_comparison, write_jobs, write_run


def test_cost_of_a_ticket_is_search_parts_before_it_and_its_own_full_training(run_folder):
    # levels 1, 2, 3 at 0.5, 0.8 (trained on to report), 0.9 (last): 2, 20 (of which 2 searched), 20 epochs
    levels = read_run(run_folder).levels
    search, total, in_all = costs_of_ticket(levels, 3)
    assert (search.epochs, total.epochs, in_all.epochs) == (2 + 2, 2 + 2 + 20, 2 + 2 + 20 + 20)
    assert search.samples == 4000
    search, total, in_all = costs_of_ticket(levels, 2)
    assert (search.epochs, total.epochs, in_all.epochs) == (2, 22, 42)


def test_probing_is_charged_and_what_is_for_the_record_is_not(run_folder):
    levels = read_run(run_folder).levels
    search, total, _ = costs_of_ticket(levels, 3)
    # 2 probes of level 1 and 1 of the searched part of level 2, 500 samples each, of a split of 1000
    assert samples_per_epoch(levels) == 1000
    assert (search.probe_samples, search.probe_epochs) == (1500, 1.5)
    assert search.charged_epochs == search.epochs + 1.5
    assert search.charged_seconds == pytest.approx(0.5 * 4 + 0.02 * 3)
    assert total.record_samples == 300
    assert total.charged_seconds == pytest.approx(0.5 * 24 + 0.02 * 5)


def test_training_flops_are_three_forward_passes_a_sample(run_folder):
    levels = read_run(run_folder).levels
    search, _, _ = costs_of_ticket(levels, 2)
    assert search.dense_flops == 3 * 1_000_000 * 2000
    assert search.flops == 3 * 500_000 * 2000
    unknown = [dataclasses.replace(level, flops=None) for level in levels]
    assert costs_of_ticket(unknown, 2)[1].flops is None
    assert costs_of_ticket(unknown, 2)[1].dense_flops is not None


def test_costs_add_and_what_is_not_known_stays_unknown():
    assert (TicketCost(epochs=1, flops=2) + TicketCost(epochs=2, flops=3)).flops == 5
    assert (TicketCost(flops=None) + TicketCost(flops=3)).flops is None


def test_reported_are_the_last_those_trained_on_and_those_with_their_whole_budget():
    short = level_of(1, sparsity=0.2, epochs=2.0, accuracy=0.9)
    full = level_of(2, sparsity=0.4, epochs=BUDGET, accuracy=0.9)
    unread = dataclasses.replace(level_of(3, sparsity=0.5, epochs=BUDGET, accuracy=0.9), test_accuracy=None)
    last = level_of(4, sparsity=0.6, epochs=2.0, accuracy=0.9)
    dense = level_of(0, sparsity=0.0, epochs=BUDGET, accuracy=0.9)
    assert [level.level for level in reported([dense, short, full, unread, last])] == [2, 4]
    assert reported([dense]) == []


def test_reads_one_row_for_each_method_seed_and_sparsity(comparison_folder):
    comparison = read_comparison(comparison_folder)
    assert len(comparison.rows) == len(METHODS) * 5 * len(TARGETS)
    assert comparison.notices == ()
    assert comparison.labels[:4] == ("lth", "sap", "incop-if", "incop-gf")
    assert comparison.controls["random=incop-if"] == ("incop-if",)
    row = next(r for r in comparison.rows if (r.label, r.seed, r.target) == ("incop-if", 3, 0.9))
    assert row.epochs == (2.0, 2.0, 20.0)
    assert row.search.epochs == 4.0
    assert row.dense_test_accuracy == pytest.approx(0.97 + row.dense_test_accuracy - 0.97)
    assert len(row.stop_reasons) == 3
    lth = next(r for r in comparison.rows if (r.label, r.seed, r.target) == ("lth", 3, 0.9))
    assert (lth.search.epochs, lth.total.epochs, lth.in_all.epochs) == (40, 60, 80)


def test_sparsities_are_matched_within_their_tolerance(tmp_path):
    folder = write_comparison(tmp_path / "c", seeds=1, methods={"lth": (None, 20.0, (0, 0, 0))})
    (folder / "comparison.toml").write_text("sparsities = [0.505, 0.81, 0.95]\n")
    jobs = read_jobs(folder)
    plan = (folder / "runs/000/plan.toml").read_text()
    (folder / "runs/000/plan.toml").write_text(plan.replace("0.5,", "").replace("0.8,", "").replace("0.9,", ""))
    comparison = read_comparison(folder)
    assert [row.target for row in comparison.rows] == [0.505]
    assert len(comparison.notices) == 2
    assert "no ticket at sparsity 0.95: the nearest is at 0.9" in comparison.notices[1]
    jobs[0]["sparsity"] = 0.9
    write_jobs(folder, jobs)
    assert [row.target for row in read_comparison(folder).rows] == [0.9]  # a run made for one sparsity has one row


def test_failed_waiting_absent_damaged_and_unfinished_runs_are_notices(tmp_path):
    folder = write_comparison(tmp_path / "c", seeds=5, methods={"lth": (None, 20.0, (0, 0, 0))})
    jobs = read_jobs(folder)
    jobs[0] |= {"state": "failed", "error": "loss is NaN"}
    jobs[1] |= {"state": "waiting"}
    jobs[2] |= {"folder": "runs/none"}
    (folder / jobs[3]["folder"] / "summary.json").write_text("{")
    write_jobs(folder, jobs)
    run = RunDir(folder / jobs[4]["folder"])
    run.write_summary(dataclasses.replace(run.read_summary(), status="interrupted"))
    comparison = read_comparison(folder)
    assert comparison.rows == ()
    said = "\n".join(comparison.notices)
    for word in ("failed: loss is NaN", "seed 1 on digits, lenet-5: waiting", "plan.toml", "damaged", "interrupted"):
        assert word in said


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"label": 3}]', '[{"label": "a", "seed": "x"}]'])
def test_damaged_list_of_runs_is_refused(tmp_path, content):
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(InputError, match=r"jobs\.json"):
        read_comparison(tmp_path)


def test_several_runs_are_one_comparison(tmp_path):
    folders = [write_run(tmp_path / f"a{s}", seed=s) for s in range(2)]
    folders += [write_run(tmp_path / "b0", seed=0, epochs=4.0), write_run(tmp_path / "l", method="lth", epochs=BUDGET)]
    folders += [write_run(tmp_path / "f", seed=9, status="failed", error="boom")]
    comparison = read(folders)
    assert isinstance(comparison, RecordedComparison)
    assert comparison.labels == ("incop-if", "incop-if (b0)", "lth")
    assert {row.target for row in comparison.rows} == {0.5, 0.8, 0.9}
    assert {row.target for row in comparison.rows if row.label != "lth"} == {0.9}
    assert comparison.notices == ("incop-if seed 9: failed: boom",)
    with pytest.raises(InputError, match="named twice"):
        together([folders[0], folders[0]])


def test_a_run_without_a_summary_is_told_by_its_levels(run_folder):
    (run_folder / "summary.json").unlink()
    recorded = read([run_folder])
    assert isinstance(recorded, RecordedRun)
    assert recorded.run.status == "running"
    assert len(recorded.levels) == 4


def test_what_is_no_run_is_refused(tmp_path, comparison_folder, run_folder):
    with pytest.raises(InputError, match="neither a run folder"):
        read([tmp_path])
    with pytest.raises(InputError, match="is a comparison already"):
        read([comparison_folder, run_folder])
    with pytest.raises(InputError, match="nothing to report"):
        read([])


def test_records_keep_the_searched_part(run_folder):
    line = RunDir(run_folder).levels_file.read_text().splitlines()[2]
    assert Level.from_json(json.loads(line)).search.epochs == 2.0

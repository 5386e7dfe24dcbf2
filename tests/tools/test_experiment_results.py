"""The results file of an experiment: what was run is not run again."""

import argparse
import math

from laurel_graph.tools.experiments.results import Results, column, mean_and_spread


def test_run_is_made_once_when_its_settings_are_in_the_file(tmp_path):
    path, calls = tmp_path / "runs.jsonl", []

    def run():
        calls.append(1)
        return {"loss": 0.5}

    assert Results(path).run({"variant": "rw", "seed": 0}, run) == {"loss": 0.5}
    assert Results(path).run({"seed": 0, "variant": "rw"}, run) == {"loss": 0.5}
    assert len(calls) == 1
    Results(path).run({"variant": "rw", "seed": 1}, run)
    assert len(calls) == 2


def test_file_continues_when_its_last_line_was_cut_off(tmp_path):
    path = tmp_path / "runs.jsonl"
    Results(path).run({"seed": 0}, lambda: 1)
    with path.open("a") as file:
        file.write('{"settings": {"seed": 1}, "resu')
    Results(path).run({"seed": 1}, lambda: 2)
    again = Results(path)
    assert [again.run({"seed": seed}, lambda: None) for seed in (0, 1)] == [1, 2]


def test_no_run_begins_when_the_time_is_over(tmp_path):
    assert Results(tmp_path / "runs.jsonl", limit=-1).run({"seed": 0}, lambda: 1) is None
    assert not (tmp_path / "runs.jsonl").exists()


def test_grid_makes_a_seed_of_every_row_before_the_next_one(tmp_path):
    made = []

    def measure(variant, seed):
        made.append((variant, seed))
        return {"loss": len(variant) + seed}

    rows, path = [{"variant": "rw"}, {"variant": "rw+lr"}], tmp_path / "new folder" / "runs.jsonl"
    table = Results(path).grid(rows, 2, {"steps": 3}, measure)
    assert made == [("rw", 0), ("rw+lr", 0), ("rw", 1), ("rw+lr", 1)]
    assert [column(runs, "loss") for _, runs in table] == [[2, 3], [5, 6]]
    assert Results(path, limit=-1).grid(rows, 3, {"steps": 3}, measure) == table
    assert Results(path, limit=-1).grid(rows, 3, {"steps": 4}, measure) == []
    assert len(made) == 4


def test_table_shows_no_spread_for_one_seed():
    assert mean_and_spread([0.5]) == ("0.5000", "0.0000")
    assert mean_and_spread([1.0, 2.0]) == ("1.5000", "0.7071")


def test_search_goes_on_past_its_first_rates_when_the_next_one_is_better(monkeypatch):
    from laurel_graph.tools.experiments import images

    def measured(method, lr, *_):
        return {"accuracy": 0.0, "loss": 1 + abs(math.log10(lr / 1e-5)) if method == "lr" else 1.0}

    monkeypatch.setattr(images, "measured", measured)
    args = argparse.Namespace(methods=("lr", "rw"), rates=(1e-3, 3e-3), search=1, validation=1, test=1)
    assert images.search(args, Results(None), {"lora": 0}) == {"lr": 1e-5, "rw": 1e-3}

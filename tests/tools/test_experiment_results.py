"""The results file of an experiment: what was run is not run again."""

from laurel_graph.tools.experiments.results import Results


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

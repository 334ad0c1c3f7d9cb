"""Suites and jobs of a benchmark; nothing is trained."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from itertools import combinations, product
from pathlib import Path

import pytest
import yaml

from alhvr_trainer.config.files import write_text
from alhvr_trainer.config.names import SETTINGS_KEY
from alhvr_trainer.config.settings import settings_from_plans
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.benchmark import command, prepare, running
from alhvr_trainer.experiments.benchmark.command import benchmark
from alhvr_trainer.experiments.benchmark.jobs import digest, is_done, jobs_of, read_results, result_file
from alhvr_trainer.experiments.benchmark.suites import load_suite, parse_suite, shipped_suites
from alhvr_trainer.resources import plans_folder

pytestmark = pytest.mark.any_nnunet

SPLITS = [{"train": ["a"], "unlabeled": ["b"], "val": ["c"]}, {"train": ["a", "b"], "unlabeled": [], "val": ["c"]}]


def suite_content(**changes: object) -> dict:
    content = {
        "name": "small",
        "dataset": "Dataset001_X",
        "configuration": "2d",
        "plans": "demo",
        "splits": "splits_final.json",
        "folds": {"1 labeled": 0},
        "seeds": [0, 1],
        "settings": {"num_epochs": 2},
        "methods": [
            {"name": "Supervised", "trainer": "SupervisedTrainer"},
            {"name": "ALHVR", "trainer": "ALHVRTrainer", "settings": {"consistency_weight": 0.3}},
        ],
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not None}


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites(name):
    suite = load_suite(name)
    assert suite.name == name and (plans_folder() / f"{suite.plans}.json").is_file()
    plans = json.loads((plans_folder() / f"{suite.plans}.json").read_text())
    assert suite.configuration in plans["configurations"]
    if suite.splits != "splits_final.json":
        splits = json.loads((prepare.SPLITS / suite.splits).read_text())
        for label, fold in suite.all_folds.items():
            labelled = {re.match(suite.group or ".*", case)[0] for case in splits[fold]["train"]}
            assert len(labelled) == int(label.split()[0])
            assert bool(splits[fold]["unlabeled"]) == (label in suite.folds)
            parts = [set(splits[fold][part]) for part in ("train", "unlabeled", "val")]
            assert len(set.union(*parts)) == sum(map(len, parts))
            assert splits[fold]["val"] == splits[0]["val"]


def test_there_are_the_announced_suites():
    assert shipped_suites() == [
        "abdomenct1k",
        "acdc",
        "acdc-cpu",
        "acdc-quick",
        "brats2019",
        "hippocampus-augmentation",
        "hippocampus-cpu",
        "hippocampus-lengths",
        "phantom-quick",
    ]


@pytest.mark.parametrize("name", shipped_suites())
def test_settings_of_shipped_suites_are_the_methods_own(name):
    from alhvr_trainer.config.methods import methods

    suite = load_suite(name)
    for method in suite.methods:
        kind = methods()[method.trainer].trainer.settings_class
        settings = settings_from_plans({SETTINGS_KEY: suite.settings_of(method, 7)}, kind).as_dict()
        assert settings["seed"] == 7
        assert method.settings == {key: settings[key] for key in method.settings}


@pytest.mark.parametrize("name", ["acdc", "hippocampus-cpu"])
def test_the_papers_ablation_and_the_slides_regions_are_one_command_each(name):
    suite = load_suite(name)
    settings = {method.name: method.settings for method in suite.methods}
    switched_off = {
        (settings[row].get("dtct_regions") == [], settings[row].get("cgcpcl_regions") == [])
        for row in suite.methods_of("ablation")
        if row.startswith("ALHVR") and "weight" not in row
    }
    assert switched_off == set(product((True, False), repeat=2))
    everything = ("omega1", "omega2", "omega3")
    masks = [tuple(settings[row].get("cps_regions", everything)) for row in suite.methods_of("regions")]
    assert sorted(masks) == sorted(each for size in (1, 2, 3) for each in combinations(everything, size))
    assert all(settings[row]["cps_samples"] == "unlabeled" for row in suite.methods_of("regions"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "suite.yaml: unknown key seed; valid keys: name, description"),
        ({"seeds": None}, 'suite.yaml: "seeds" is missing; it must be a list of different whole numbers'),
        ({"seeds": [1, 1]}, r'"seeds" is \[1, 1\]; it must be a list of different whole numbers'),
        ({"folds": {}}, '"folds" is {}; it must be names of labeled fractions'),
        ({"folds": {"a": -1}}, '"folds" is .* it must be names of labeled fractions'),
        ({"group": "patient("}, "\"group\" is 'patient\\('; it must be a regular expression"),
        ({"settings": {"seed": 1}}, '"settings" is .* without "seed"'),
        ({"methods": [{"name": "a,b", "trainer": "X"}]}, "method 1: \"name\" is 'a,b'; it must be text of at most 60"),
        ({"methods": [{"name": "a"}]}, 'method 1: "trainer" is missing'),
        ({"methods": [{"name": n, "trainer": "X"} for n in ("A b", "a_b")]}, 'two methods are called "A b" or nearly'),
        ({"tables": {"comparison": ["ALHVR", "CPS"]}}, 'table "comparison" names "CPS"; the methods are Supervised'),
        ({"tables": {"other": ["ALHVR"]}}, '"tables" is .* comparison, ablation, regions'),
        ({"dataset": "phantom"}, r'"phantom" \(numbers of cases\) belongs to "dataset: phantom"'),
        ({"environment": {"PATH": "x"}}, '"environment" is .*OMP_NUM_THREADS'),
    ],
)
def test_bad_suites_are_refused_in_one_line(changes, message, tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(suite_content(**changes)))
    with pytest.raises(InputError, match=message) as error:
        load_suite(str(file))
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_files_that_are_no_suite(tmp_path):
    with pytest.raises(InputError, match="there is no suite nonsense; suites: abdomenct1k, acdc"):
        load_suite("nonsense")
    for text, message in (("a: [", "is not valid YAML"), ("- 1", "must be an object"), ("", "must be an object")):
        (tmp_path / "suite.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            load_suite(str(tmp_path / "suite.yaml"))


def test_jobs_go_seed_by_seed():
    suite = parse_suite(suite_content(fully_labeled={"2 labeled": 1}), "suite")
    jobs = jobs_of(suite, "Dataset001_X", SPLITS, "1234")
    assert [str(job) for job in jobs] == [
        f"{method}, seed {seed}"
        for seed in (0, 1)
        for method in ("Supervised, 1 labeled", "ALHVR, 1 labeled", "Supervised, 2 labeled")
    ]
    assert jobs[1].settings == {"num_epochs": 2, "consistency_weight": 0.3, "seed": 0}
    assert jobs[1].name == "alhvr__1_labeled__seed0"


def test_a_part_of_the_jobs():
    suite = parse_suite(suite_content(), "suite")
    (job,) = jobs_of(suite, "Dataset001_X", SPLITS, "1234", methods=["ALHVR"], seeds=[1], folds=["1 labeled"])
    assert str(job) == "ALHVR, 1 labeled, seed 1"
    for part, message in (
        ({"methods": ["CPS"]}, "methods: the suite has no 'CPS'; there are Supervised, ALHVR"),
        ({"seeds": [7]}, "seeds: the suite has no 7; there are 0, 1"),
        ({"folds": ["x"]}, "folds: the suite has no 'x'; there are 1 labeled"),
    ):
        with pytest.raises(InputError, match=message):
            jobs_of(suite, "Dataset001_X", SPLITS, "1234", **part)
    with pytest.raises(InputError, match=r'"1 labeled" is fold 5, but .* has only 2 folds'):
        jobs_of(parse_suite(suite_content(folds={"1 labeled": 5}), "suite"), "Dataset001_X", SPLITS, "1234")


def test_results_of_other_settings_are_an_error(tmp_path):
    (job,) = jobs_of(parse_suite(suite_content(seeds=[0]), "suite"), "Dataset001_X", SPLITS, "1234", methods=["ALHVR"])
    assert not is_done(tmp_path, job)
    write_text(result_file(tmp_path, job), json.dumps({"job": asdict(job), "metrics": {}}))
    (result_file(tmp_path, job).parent / "._hidden.json").write_bytes(b"\x00\x05")  # as macOS leaves them
    assert is_done(tmp_path, job) and len(read_results(tmp_path, "small")) == 1
    changed = parse_suite(suite_content(seeds=[0], settings={"num_epochs": 9}), "suite")
    (other,) = jobs_of(changed, "Dataset001_X", SPLITS, "1234", methods=["ALHVR"])
    with pytest.raises(InputError, match=r"\"settings\" \{'num_epochs': 2\}, now it is \{'num_epochs': 9\}: remove"):
        is_done(tmp_path, other)
    moved = [{**SPLITS[0], "val": ["d"]}, SPLITS[1]]
    (other,) = jobs_of(parse_suite(suite_content(seeds=[0]), "suite"), "Dataset001_X", moved, "1234", methods=["ALHVR"])
    with pytest.raises(InputError, match='was made with "split"'):
        is_done(tmp_path, other)
    (other,) = jobs_of(parse_suite(suite_content(seeds=[0]), "suite"), "Dataset001_X", SPLITS, "9", methods=["ALHVR"])
    with pytest.raises(InputError, match='was made with "plans_digest"'):
        is_done(tmp_path, other)
    with pytest.raises(InputError, match="is not a result of the suite other"):
        read_results(tmp_path, "other")


def test_a_default_that_the_suite_now_names_is_no_other_setting(tmp_path):
    suite = parse_suite(suite_content(seeds=[0], methods=[{"name": "ALHVR", "trainer": "ALHVRTrainer"}]), "suite")
    (job,) = jobs_of(suite, "Dataset001_X", SPLITS, "1234")
    result = {"job": asdict(job), "settings_in_force": {"consistency_weight": 0.3, "num_epochs": 2}, "metrics": {}}
    write_text(result_file(tmp_path, job), json.dumps(result))
    (named,) = jobs_of(parse_suite(suite_content(seeds=[0]), "suite"), "Dataset001_X", SPLITS, "1234", ["ALHVR"])
    assert named.settings["consistency_weight"] == 0.3 and is_done(tmp_path, named)
    other = replace(named, settings={**named.settings, "consistency_weight": 0.1})
    with pytest.raises(InputError, match=r"\{'consistency_weight': 0.3\}, now it is \{'consistency_weight': 0.1\}"):
        is_done(tmp_path, other)


def test_seeds_of_a_row_must_have_the_same_settings(tmp_path):
    jobs = jobs_of(parse_suite(suite_content(), "suite"), "Dataset001_X", SPLITS, "1234", methods=["ALHVR"])
    for job, temperature in zip(jobs, (0.1, 0.2), strict=True):
        settings = {"seed": job.seed, "temperature": temperature, **({"later": 1} if job.seed else {})}
        result = {"job": asdict(job), "settings_in_force": settings, "metrics": {}}
        write_text(result_file(tmp_path, job), json.dumps(result))
    with pytest.raises(InputError, match=r"seed1.json ran with \{'temperature': 0.2.*seed0.json .*'temperature': 0.1"):
        read_results(tmp_path, "small")
    result["settings_in_force"]["temperature"] = 0.1
    write_text(result_file(tmp_path, jobs[1]), json.dumps(result))
    assert len(read_results(tmp_path, "small")) == 2


def test_digest_tells_content_apart():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_lists_of_the_command_line():
    assert command._list("A b, C") == ["A b", "C"]
    assert (command._list(None), command._list(0), command._list((0, 1))) == (None, [0], [0, 1])


def test_a_table_that_the_suite_does_not_have(tmp_path):
    with pytest.raises(InputError, match="suite acdc-quick has no table 'regions'; there are comparison"):
        benchmark("acdc-quick", table="regions", output=str(tmp_path), device="cpu")
    with pytest.raises(InputError, match="name either --methods or the --table"):
        benchmark("acdc-quick", table="comparison", methods="ALHVR", output=str(tmp_path), device="cpu")


def test_nothing_to_tabulate(tmp_path):
    with pytest.raises(InputError, match=r"there is no finished run in .*runs"):
        benchmark("phantom-quick", output=str(tmp_path), tables_only=True)


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match='device is \'gpu\'; it must be "cuda", "cpu" or "mps"'):
        benchmark("phantom-quick", output=str(tmp_path / "out"), device="gpu")
    assert not (tmp_path / "out").exists()


def test_other_splits_stay_as_they_are(tmp_path):
    target = tmp_path / "splits_final.json"
    prepare._place_splits(SPLITS, target)
    prepare._place_splits(SPLITS, target)
    before = target.read_bytes()
    with pytest.raises(InputError, match="is another split than the suite's"):
        prepare._place_splits(SPLITS[:1], target)
    assert target.read_bytes() == before


def test_phantoms_are_made_once(tmp_path, monkeypatch):
    for name in prepare.FOLDERS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, str(tmp_path / name))  # taken back at the end
    numbers = {"labeled": 3, "unlabeled": 0, "test": 1, "seed": 0}
    suite = parse_suite(suite_content(dataset="phantom", phantom=numbers, test=True), "suite")
    prepare.set_folders(suite, tmp_path)
    raw = tmp_path / "nnUNet_raw" / "Dataset902_Phantom"
    prepare._generate(raw, numbers)
    made = (raw / "imagesTr" / "phantom_000_0000.nii.gz").stat().st_mtime_ns
    prepare._generate(raw, numbers)
    assert (raw / "imagesTr" / "phantom_000_0000.nii.gz").stat().st_mtime_ns == made
    assert not (raw / "splits_final.json").exists()  # the suite's own counts
    with pytest.raises(InputError, match="holds other phantoms than the suite's"):
        prepare._generate(raw, {**numbers, "seed": 1})


def test_a_dataset_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    (tmp_path / "Dataset031_ACDC").mkdir()
    assert prepare._numbered("ACDC") == "Dataset031_ACDC"
    (tmp_path / "Dataset027_ACDC").mkdir()
    assert prepare._numbered("ACDC") == "ACDC"  # two of them: nnU-Net's look-up says so
    assert prepare._numbered("Dataset027_ACDC") == "Dataset027_ACDC"


def test_a_run_belongs_to_one_process(tmp_path):
    with (
        prepare.locked(tmp_path / "x.lock", wait=False) as first,
        prepare.locked(tmp_path / "x.lock", wait=False) as other,
    ):
        assert first and not other
    with prepare.locked(tmp_path / "x.lock", wait=False) as again:
        assert again


def test_files_are_written_as_a_whole(tmp_path):
    write_text(tmp_path / "new" / "file", "text")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_runs_take_the_suites_environment_unless_the_user_set_it(monkeypatch):
    suite = parse_suite(suite_content(environment={"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}), "suite")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.setenv(running.TRAINERS, "/my/methods")
    environment = running.environment_of(suite, "cpu", 1)
    assert (environment["OMP_NUM_THREADS"], environment["nnUNet_n_proc_DA"]) == ("7", "0")
    ours, theirs = environment[running.TRAINERS].split(os.pathsep)
    assert (Path(ours) / "alhvr.py").is_file() and theirs == "/my/methods"


def test_an_error_in_one_run_is_its_failure_alone(tmp_path, monkeypatch):
    def run_job(job, _how, _stop):
        if job == "first":
            raise OSError("no space left")
        return None, 1.0

    monkeypatch.setattr(running, "run_job", run_job)
    how = running.How("plans", tmp_path, "cpu", {}, remove_checkpoints=False)
    assert running.run_all(["first", "second"], 1, how) == ["first: OSError: no space left"]


def test_trainings_side_by_side_share_the_cores(monkeypatch):
    """On the CPU alone, and unless suite or user say how many threads each has."""
    suite = parse_suite(suite_content(), "suite")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert running.environment_of(suite, "cpu", 3)["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in running.environment_of(suite, "cpu", 1)
    assert "OMP_NUM_THREADS" not in running.environment_of(suite, "cuda", 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert running.environment_of(suite, "cpu", 3)["OMP_NUM_THREADS"] == "5"


def test_a_wrong_part_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    with pytest.raises(InputError, match="methods: the suite has no 'Foo'"):
        benchmark("phantom-quick", output=str(tmp_path / "out"), methods="Foo", device="cpu")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output .*file is a file; name a folder"):
        benchmark("phantom-quick", output=str(tmp_path / "file"), device="cpu")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]

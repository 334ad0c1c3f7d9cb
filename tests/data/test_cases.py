"""Where unlabeled cases may lie, and what is refused. Files are empty: only names count here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alhvr_trainer.config.dataset_json import channel_names, check_dataset_json
from alhvr_trainer.data.dataset import Cases, Dataset
from alhvr_trainer.data.splits import check_splits, hidden_cases, load_splits
from alhvr_trainer.errors import InputError

DATASET_JSON = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}
SPLITS = [
    {"train": ["a"], "unlabeled": ["b"], "val": ["c"]},
    {"train": ["b"], "unlabeled": ["c"], "val": ["a"]},
]


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def add_case(folder: Path, case: str, channels: int = 2, ending: str = ".nii.gz") -> None:
    touch(folder, *(f"{case}_{channel:04d}{ending}" for channel in range(channels)))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Labeled cases a, b, c and the unlabeled case u, two channels each; no labelsTr at all."""
    for case in "abc":
        add_case(tmp_path / "imagesTr", case)
    add_case(tmp_path / "imagesTr_unlabeled", "u")
    return tmp_path


def dataset(raw: Path, dataset_json: dict = DATASET_JSON, splits: object = None) -> Dataset:
    """The dataset in ``raw``, with these splits in its preprocessed folder."""
    preprocessed = raw / "preprocessed"
    preprocessed.mkdir(exist_ok=True)
    if splits is not None:
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    return Dataset("Dataset901_Tiny", str(raw), str(preprocessed), dataset_json)


def fold_cases(raw: Path, splits=SPLITS, dataset_json=DATASET_JSON) -> Cases:
    train, val = (splits[0]["train"], splits[0]["val"]) if splits else (["a", "b", "c"], ["c"])
    return dataset(raw, dataset_json, splits).fold(0, train, val).unlabeled


def test_default_folder_gives_files_in_channel_order(raw: Path) -> None:
    folder = raw / "imagesTr_unlabeled"
    expected = {"u": [str(folder / "u_0000.nii.gz"), str(folder / "u_0001.nii.gz")]}
    assert dataset(raw).unlabeled_images == expected


def test_folders_of_dataset_json_replace_the_default(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add_case(elsewhere, "x")
    add_case(raw / "more", "y")
    named = {**DATASET_JSON, "unlabeled": ["more", str(elsewhere)]}
    cases = dataset(raw, named).unlabeled_images
    assert {case: Path(files[0]).parent for case, files in cases.items()} == {
        "y": raw / "more",
        "x": elsewhere,
    }


def test_a_fold_joins_folder_and_split(raw: Path) -> None:
    cases = fold_cases(raw)
    assert list(cases) == ["b", "u"]
    assert cases["b"] == [str(raw / "imagesTr" / f"b_000{channel}.nii.gz") for channel in (0, 1)]


def test_all_folds_together(raw: Path) -> None:
    assert list(dataset(raw, splits=SPLITS).unlabeled) == ["b", "c", "u"]


@pytest.mark.parametrize("fold", ["all", 2, 7])
def test_folds_outside_the_file_hide_what_no_fold_trains_on(raw: Path, fold: int | str) -> None:
    """Fold 0 hides b, which fold 1 trains on; fold 1 hides c, whose label no fold trains on."""
    assert hidden_cases(SPLITS, fold) == ["c"]
    assert hidden_cases([{"train": ["a", "b"], "val": ["c"]}], fold) == []
    assert list(dataset(raw, splits=SPLITS).fold(fold, ["a", "b"], ["a", "b"]).unlabeled) == ["c", "u"]


def test_fold_may_be_text(raw: Path) -> None:
    assert hidden_cases(SPLITS, "1") == ["c"]


def test_other_files_beside_the_images_do_not_matter(raw: Path) -> None:
    touch(raw / "imagesTr_unlabeled", ".DS_Store", ".u_0000.nrrd", "README.txt", "u.json")
    assert list(dataset(raw).unlabeled_images) == ["u"]


def test_one_file_may_hold_several_channels(tmp_path: Path) -> None:
    for folder, case in (("imagesTr", "a"), ("imagesTr_unlabeled", "u")):
        add_case(tmp_path / folder, case, channels=1, ending=".png")
    rgb = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    assert dataset(tmp_path, rgb).unlabeled_images == {"u": [str(tmp_path / "imagesTr_unlabeled/u_0000.png")]}


def test_images_listed_in_dataset_json(raw: Path) -> None:
    """nnU-Net's other layout: dataset.json lists the files, imagesTr need not exist."""
    entry = {"images": ["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz"], "label": "none.nii.gz"}
    listed = {**DATASET_JSON, "dataset": {"b": entry}}
    splits = [{"train": ["a"], "unlabeled": ["b"], "val": ["c"]}]
    assert fold_cases(raw, splits, dataset_json=listed)["b"] == fold_cases(raw, splits)["b"]
    assert listed["dataset"]["b"]["images"][0] == "imagesTr/b_0000.nii.gz", "the caller's dict must not change"


def test_no_unlabeled_case_says_both_places(raw: Path) -> None:
    (raw / "imagesTr_unlabeled" / "u_0000.nii.gz").unlink()
    (raw / "imagesTr_unlabeled" / "u_0001.nii.gz").unlink()
    for cases in (lambda: fold_cases(raw, []), lambda: dataset(raw, splits=[]).unlabeled):
        with pytest.raises(InputError) as error:
            cases()
        assert str(raw / "imagesTr_unlabeled") in str(error.value)
        assert '"unlabeled" of the fold in splits_final.json' in str(error.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "v_0000.nii.gz",
            r'"v" in .*imagesTr_unlabeled: v_0001.nii.gz is missing \(labeled cases have 2 files',
        ),
        ("v_0001.nii.gz", "v_0000.nii.gz is missing"),
        ("u_0002.nii.gz", "u_0002.nii.gz is one channel too many"),
        ("v_0000.nrrd", r'v_0000.nrrd has another file ending than the dataset: .* is ".nii.gz"'),
        ("v_0000.nii", "v_0000.nii has another file ending"),
        ("v_0000.PNG", "v_0000.PNG has another file ending"),
        ("v.nii.gz", "v.nii.gz has no channel number: name it CASE_0000.nii.gz"),
    ],
)
def test_files_that_do_not_fit_are_named(raw: Path, file: str, message: str) -> None:
    touch(raw / "imagesTr_unlabeled", file)
    with pytest.raises(InputError, match=message):
        fold_cases(raw)


@pytest.mark.parametrize(
    ("unlabeled", "message"),
    [
        (["nowhere"], "names the folder .*nowhere, which does not exist"),
        ("imagesTr_unlabeled", "must be a list of folders"),
        ([3], "must be a list of folders"),
        (["imagesTr_unlabeled", "copy"], '"u" is in .*copy and in .*imagesTr_unlabeled'),
        (["imagesTr"], '"a" is in .*imagesTr and in .*imagesTr'),
    ],
)
def test_folders_that_cannot_be_used(raw: Path, unlabeled: object, message: str) -> None:
    add_case(raw / "copy", "u")
    with pytest.raises(InputError, match=message):
        list(dataset(raw, {**DATASET_JSON, "unlabeled": unlabeled}).unlabeled_images)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"train": ["a", "b"], "unlabeled": ["b"], "val": ["c"]},
            'case "b" is in "unlabeled" and "train" of fold 0',
        ),
        (
            {"train": ["a"], "unlabeled": ["b", "c"], "val": ["c"]},
            'case "c" is in "unlabeled" and "val" of fold 0',
        ),
        (
            {"train": ["a"], "unlabeled": ["x"], "val": ["c"]},
            'case "x" .* but .*imagesTr has no images of it',
        ),
        ({"train": ["a"], "unlabeled": ["b", "b"], "val": ["c"]}, 'case "b" is listed twice'),
        ({"train": ["a"], "unlabeled": "b", "val": ["c"]}, "must be a list of case names"),
        (
            {"train": ["a"], "unlabeled": ["u"], "val": ["c"]},
            'case "u" is in an unlabeled folder and "unlabeled"',
        ),
        (
            {"train": ["a", "u"], "unlabeled": ["b"], "val": ["c"]},
            '"u" .*the unlabeled folder and "train" of fold 0',
        ),
    ],
)
def test_splits_that_break_a_rule(raw: Path, split: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fold_cases(raw, [split])


def test_all_folds_are_checked(raw: Path) -> None:
    splits = [SPLITS[0], {"train": ["b"], "unlabeled": ["b"], "val": ["c"]}]
    with pytest.raises(InputError, match='"train" of fold 1'):
        list(dataset(raw, splits=splits).unlabeled)


def test_splits_must_be_a_list_of_folds(raw: Path) -> None:
    with pytest.raises(InputError, match="must be a list of folds"):
        check_splits({"train": []})


def write(folder: Path, content: object) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "splits_final.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_splits_of_the_preprocessed_folder_win(tmp_path: Path) -> None:
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    assert load_splits(str(raw), str(preprocessed)) == []
    write(raw, SPLITS[:1])
    assert load_splits(str(raw), str(preprocessed)) == SPLITS[:1]
    write(preprocessed, SPLITS)  # nnU-Net allows further folds there
    assert load_splits(str(raw), str(preprocessed)) == SPLITS


def test_splits_that_disagree(tmp_path: Path) -> None:
    """nnU-Net compares train and val only, and would go on with the old list of unlabeled cases."""
    raw = write(tmp_path / "raw", SPLITS[:1])
    preprocessed = write(tmp_path / "preprocessed", [{**SPLITS[0], "unlabeled": []}])
    with pytest.raises(InputError, match=r'"unlabeled" of fold 0 differs between .*raw.* and .*preprocessed'):
        load_splits(str(raw), str(preprocessed))


def test_broken_splits_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"splits_final.json is not valid JSON"):
        load_splits(str(write(tmp_path / "raw", "[{")), str(tmp_path / "preprocessed"))


def test_misspelled_names_are_not_passed_over(tmp_path):
    """A folder, a key of dataset.json and a key of the splits that nobody would look at."""
    add_case(tmp_path / "imagesTr", "a")
    add_case(tmp_path / "imagesTr_unlabelled", "u")
    with pytest.raises(InputError, match=r'has "imagesTr_unlabelled"; did you mean imagesTr_unlabeled\?'):
        list(dataset(tmp_path).unlabeled_images)
    for key in ("unlabelled", "Unlabeled"):
        with pytest.raises(InputError, match=rf'dataset\.json has "{key}"; did you mean unlabeled\?'):
            list(dataset(tmp_path, {**DATASET_JSON, key: ["imagesTr_unlabelled"]}).unlabeled_images)
        with pytest.raises(InputError, match=rf'fold 0 in splits_final\.json has "{key}"; did you mean unlabeled\?'):
            check_splits([{"train": ["a"], "val": ["c"], key: ["b"]}])
    named = {**DATASET_JSON, "unlabeled": ["imagesTr_unlabelled"]}  # whoever names the folder means it
    assert list(dataset(tmp_path, named).unlabeled_images) == ["u"]


@pytest.mark.parametrize("folder", ["imagesTr", "imagesTr_unlabeled"])
def test_a_name_under_which_nnunet_keeps_a_segmentation(tmp_path, folder):
    add_case(tmp_path / "imagesTr", "a")
    add_case(tmp_path / folder, "p1_seg")
    with pytest.raises(InputError, match=r'case "p1_seg": nnU-Net keeps the segmentation of a case "p1" under'):
        list(dataset(tmp_path).unlabeled_images)


def test_hidden_files_are_no_cases(tmp_path):
    """What macOS leaves beside each file; where nnU-Net itself lists a folder, it has to go."""
    for folder, case in (("imagesTr", "a"), ("imagesTr_unlabeled", "u")):
        add_case(tmp_path / folder, case)
        touch(tmp_path / folder, f"._{case}_0000.nii.gz", ".DS_Store")
    assert list(dataset(tmp_path).unlabeled_images) == ["u"]
    assert list(dataset(tmp_path).images) == ["a"]
    with pytest.raises(InputError, match=r"imagesTr/\._a_0000\.nii\.gz is a hidden file.* -delete$"):
        dataset(tmp_path).check_no_hidden_files()
    (tmp_path / "imagesTr" / "._a_0000.nii.gz").unlink()
    dataset(tmp_path).check_no_hidden_files()


def test_channels_out_of_order_are_refused():
    """nnU-Net goes by the place in the list for normalization, and by the number for files."""
    for key in ("channel_names", "modality"):
        with pytest.raises(InputError, match=rf'"{key}" lists the channels in the order 1, 0; put them in order'):
            check_dataset_json({key: {"1": "CT", "0": "MR"}, "labels": {"organ": 1}, "file_ending": ".mha"})
    assert channel_names({"channel_names": {str(number): f"c{number}" for number in range(12)}})[10] == "c10"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file_ending", None),
        ("file_ending", "nii"),
        ("labels", {}),
        ("labels", {"organ": 1.5}),
        ("labels", {"organ": []}),
        ("labels", {"organ": 1, "ignore": [2]}),
        ("labels", {"organ": 40000}),
        ("channel_names", {"1": "CT"}),
        ("channel_names", ["CT"]),
        ("channel_names", None),
        ("modality", {"0": ""}),
        ("numTraining", "3"),
        ("regions_class_order", [True]),
        ("overwrite_image_reader_writer", "../reader"),
        ("dataset", {}),
        ("dataset", {"a": {"images": [], "label": "a.nii.gz"}}),
        ("dataset", {"../a": {"images": ["a.nii.gz"], "label": "a.nii.gz"}}),
    ],
)
def test_bad_keys_of_dataset_json(key, value):
    good = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    check_dataset_json(good)
    with pytest.raises(InputError, match=rf'^data/dataset.json: "{key}" is .*; it must be '):
        check_dataset_json({**good, key: value}, "data/dataset.json")

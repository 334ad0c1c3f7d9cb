"""The bundle's overlays: ``evaluate`` says what ``alhvr evaluate`` says, several processes do what one does."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from alhvr_trainer.bundle.scripts import metrics
from dicom_files import oblique_image, write_series
from nnunet_environment import SUPPORT, set_nnunet
from scripts.cases import find_cases
from scripts.distributed import cases_of_this_rank
from scripts.evaluation import Evaluation, predict_and_evaluate
from trained_models import assert_same_files, make_images, make_model

from alhvr_trainer.evaluation.evaluate import evaluate
from alhvr_trainer.export.bundle import export_bundle
from alhvr_trainer.resources import bundle_folder, ext_trainer_folder

pytestmark = pytest.mark.any_nnunet
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A bundle of network a, images, and as references what network b predicts."""
    root = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        patch.setenv("nnUNet_extTrainer", str(ext_trainer_folder()))
        make_model(root / "results", "2d")
        make_images(root / "images")
        export_bundle(901, "2d", output=str(root / "bundle"))
        export_bundle(901, "2d", output=str(root / "bundle_b"), network="b")
        run(root / "bundle_b", root / "images", root / "labels")
        yield root


def configs(bundle: Path, *overlays: str) -> list[str]:
    return [str(bundle / "configs" / f"{name}.json") for name in ("inference", *overlays)]


def run(bundle: Path, images: Path, output: Path, *overlays: str, **options) -> Path:
    places = {"bundle_root": str(bundle), "dataset_dir": str(images), "output_dir": str(output)}
    monai.bundle.run(config_file=configs(bundle, *overlays), **places, **options)
    return output


def torchrun(bundle: Path, images: Path, output: Path, *overlays: str, processes: int = 2, labels: Path | None = None):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words += ["-m", "monai.bundle", "run", "--config_file", configs(bundle, *overlays)]
    words += ["--bundle_root", bundle, "--dataset_dir", images, "--output_dir", output]
    words += ["--labels_dir", labels] if labels else []
    done = launch(*words, cwd=output.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def launch(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Progress bars of several processes may cut each other's characters."""
    text = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run([str(word) for word in words], cwd=cwd, timeout=300, **text)


def test_numbers_of_alhvr_evaluate(workspace, tmp_path, capsys):
    found = run(
        workspace / "bundle", workspace / "images", tmp_path / "out", "evaluate", labels_dir=workspace / "labels"
    )
    printed = capsys.readouterr().out
    expected = evaluate(found, workspace / "labels", workspace / "bundle" / "dataset.json", tmp_path / "expected")
    result = json.loads((found / "metrics.json").read_text())
    assert result.pop("failed") == {}
    assert result == expected
    assert 0 < result["overall"]["Dice"]["mean"] < 1
    assert (found / "metrics.csv").read_text() == (tmp_path / "expected" / "metrics.csv").read_text()
    assert capsys.readouterr().out.strip() in printed  # the same table


def test_the_overlay_fits_on_the_native_workflow(workspace, tmp_path):
    bundle = workspace / "bundle"
    monai.bundle.run(
        config_file=[str(bundle / "configs" / f"{name}.json") for name in ("inference_native", "evaluate")],
        bundle_root=str(bundle),
        dataset_dir=str(workspace / "images"),
        output_dir=str(tmp_path / "out"),
        labels_dir=str(workspace / "labels"),
    )
    result = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert result["failed"] == {} and set(result["cases"]) == {"coronal", "flipped", "oblique"}
    assert result["overall"]["Dice"]["n"] == 3


def test_exported_bundles_carry_the_code_that_the_package_uses(workspace):
    of_package = Path(metrics.__file__).parent
    names = sorted(file.name for file in of_package.glob("*.py"))
    assert names == sorted(file.name for file in (workspace / "bundle" / "scripts").glob("*.py"))
    assert all((workspace / "bundle" / "scripts" / n).read_bytes() == (of_package / n).read_bytes() for n in names)


def test_references_are_missed_before_the_inference(workspace, tmp_path):
    (tmp_path / "labels").mkdir()
    for labels, message in {
        tmp_path / "nowhere": f"bundle: labels_dir {tmp_path / 'nowhere'} does not exist; name the folder of reference",
        tmp_path / "labels": f"bundle: no file in labels_dir {tmp_path / 'labels'} has the name of a case (coronal, ",
    }.items():
        with pytest.raises(SystemExit) as caught:
            run(workspace / "bundle", workspace / "images", tmp_path / "out", "evaluate", labels_dir=str(labels))
        assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def evaluation(workspace, tmp_path):
    """Of the predictions of network b, which are the references as well."""
    for folder in ("out", "labels"):
        shutil.copytree(workspace / "labels", tmp_path / folder)
    cases = find_cases(workspace / "images", 2)
    return Evaluation(cases, tmp_path / "out", tmp_path / "labels", workspace / "bundle" / "dataset.json")


def rewrite(file: Path, change, ending: str = ".nii.gz") -> None:
    image = sitk.ReadImage(str(file))
    file.unlink()
    sitk.WriteImage(change(image), str(file.with_name(file.name.replace(".nii.gz", ending))))


def truncate(file: Path) -> None:
    rewrite(file, lambda image: image, ".nii")
    os.truncate(file.with_suffix(""), 600)


def sevenfold(image: sitk.Image) -> sitk.Image:
    return image * 7


def moved(image: sitk.Image) -> sitk.Image:
    image.SetOrigin([mm + 5 for mm in image.GetOrigin()])
    return image


@pytest.mark.parametrize(("with_spacing", "unit"), [((), "voxels"), (("one", "two"), "mm"), (("one",), None)])
def test_the_unit_of_distances(with_spacing, unit, tmp_path):
    """Volumes in TIFF have sizes where a JSON file beside them says so; nobody averages over mm and voxels."""
    content = {"labels": {"background": 0, "organ": 1}, "file_ending": ".tif"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for folder in ("out", "labels"):
        (tmp_path / folder).mkdir()
        for case in ("one", "two"):
            tifffile.imwrite(tmp_path / folder / f"{case}.tif", np.pad(np.ones((3, 4, 5), np.uint8), 2))
            if case in with_spacing:
                (tmp_path / folder / f"{case}.json").write_text(json.dumps({"spacing": [2, 1, 1]}))
    cases = [{"case": case} for case in ("one", "two")]
    bundles = Evaluation(cases, tmp_path / "out", tmp_path / "labels", tmp_path / "dataset.json")
    for measure in (lambda: evaluate(tmp_path / "out", tmp_path / "labels", content), bundles.evaluate):
        if unit:
            assert measure()["unit"] == unit
            continue
        with pytest.raises(Exception, match="case one has its spacing in mm, case two has none: add the spacing"):
            measure()


def test_references_of_any_ending(evaluation):
    rewrite(evaluation.labels_dir / "oblique.nii.gz", lambda image: image, ".nrrd")
    rewrite(evaluation.labels_dir / "coronal.nii.gz", lambda image: sitk.Cast(image, sitk.sitkFloat32), ".mha")
    result = evaluation.evaluate()
    assert set(result["cases"]) == {"coronal", "flipped", "oblique"}
    assert result["overall"]["Dice"]["mean"] == 1.0


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda e: (e.output_dir / "oblique.nii.gz").unlink(), r"no prediction of oblique"),
    (lambda e: rewrite(e.labels_dir / "oblique.nii.gz", moved), r"origin .* of .*out/oblique.nii.gz differs from"),
    (lambda e: rewrite(e.labels_dir / "oblique.nii.gz", sevenfold), r"oblique.nii.gz has values that .*: 14, 7;"),
    (lambda e: (e.labels_dir / "oblique.nii.gz").write_bytes(b"no"), r"cannot read .*oblique.nii.gz \(damaged or not"),
    (lambda e: truncate(e.labels_dir / "oblique.nii.gz"), r"cannot read .*oblique.nii \(damaged or not an i.*: \S+"),
])  # fmt: skip
def test_one_bad_case_is_reported_and_the_others_are_measured(evaluation, spoil, reason, capsys):
    spoil(evaluation)
    with pytest.raises(SystemExit, match=rf"^bundle: 1 of 3 cases are not in the metrics: oblique: .*{reason}"):
        evaluation.report_or_exit()
    result = json.loads((evaluation.output_dir / "metrics.json").read_text())
    assert set(result["cases"]) == {"coronal", "flipped"}
    assert set(result["failed"]) == {"oblique"}
    with open(evaluation.output_dir / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == "oblique"]
    assert [(row["class"], row["Dice"], row["empty"]) for row in rows] == [
        ("shell", "", "not measured"),
        ("core", "", "not measured"),
    ]


class Stopped:
    """An evaluator that could not predict some cases, and says so in the end."""

    data_loader = ("a", "b")

    def __init__(self, failed):
        self.failed = failed

    def run(self):
        raise SystemExit("bundle: some cases failed")


def test_an_older_prediction_does_not_stand_for_a_failed_case(evaluation):
    with pytest.raises(SystemExit, match=r"1 of 3 cases are not in the metrics: oblique: out of memory$"):
        predict_and_evaluate(Stopped({"oblique": "out of memory"}), evaluation)
    assert "oblique" not in json.loads((evaluation.output_dir / "metrics.json").read_text())["cases"]


def test_a_failure_is_not_forgotten_where_there_is_no_reference(evaluation, capsys):
    (evaluation.labels_dir / "oblique.nii.gz").unlink()
    with pytest.raises(SystemExit, match=r"^bundle: some cases failed$"):
        predict_and_evaluate(Stopped({"oblique": "out of memory"}), evaluation)
    assert "left out, cases without reference: oblique" in capsys.readouterr().out


def test_nothing_to_measure(evaluation):
    with pytest.raises(SystemExit, match=r"^bundle: no case could be measured: coronal: x; flipped: x; oblique: x$"):
        evaluation.report_or_exit({case: "x" for case in evaluation.cases})


def test_a_reference_there_twice(evaluation):
    shutil.copy(evaluation.labels_dir / "oblique.nii.gz", evaluation.labels_dir / "oblique.nii")
    with pytest.raises(
        SystemExit, match=r"^bundle: case oblique in .*labels is there twice: oblique.nii, oblique.nii.gz"
    ):
        evaluation.check_or_exit()


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_case_goes_to_one_rank(monkeypatch, processes):
    cases = list("abcd")
    shares = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        shares.append(cases_of_this_rank(cases))
    assert sorted(chain(*shares)) == cases
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_two_processes(workspace, tmp_path):
    """Three cases: the files and numbers of one process."""
    bundle, images = workspace / "bundle", workspace / "images"
    alone = run(bundle, images, tmp_path / "alone", "evaluate", labels_dir=str(workspace / "labels"))
    overlays = ("evaluate", "multi_gpu_evaluate")
    printed = torchrun(bundle, images, tmp_path / "two", *overlays, labels=workspace / "labels")
    assert_same_files(tmp_path / "two", alone)
    assert (tmp_path / "two" / "metrics.json").read_text() == (alone / "metrics.json").read_text()
    assert "1/1" in printed and "2/2" in printed  # each rank had its cases
    assert printed.count("no distance") == 1  # one table


@pytest.mark.slow
def test_fewer_cases_than_processes(workspace, tmp_path):
    image = workspace / "images" / "oblique_0000.nii.gz"
    torchrun(workspace / "bundle", image, tmp_path / "out", "multi_gpu_inference")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["oblique.nii.gz"]


@pytest.mark.slow
def test_a_rank_with_a_failed_case_waits_for_the_evaluation(evaluation, tmp_path):
    """torchrun ends every rank as soon as one has failed, so the one that fails must be the last."""
    (tmp_path / "ranks.py").write_text(
        "import sys, time\n"
        f"sys.path[:0] = [{str(bundle_folder())!r}, {str(SUPPORT)!r}]\n"
        "from scripts.distributed import rank, run_on_all_ranks\n"
        "from scripts.evaluation import Evaluation\n"
        "class Slow(Evaluation):\n"
        "    def evaluate(self, failed=None):\n"
        "        time.sleep(3)\n"
        "        return super().evaluate(failed)\n"
        "class Evaluator:\n"
        "    data_loader = (1,)\n"
        "    failed = {'oblique': 'out of memory'} if rank() == 1 else {}\n"
        "    def run(self):\n"
        "        if self.failed:\n"
        "            raise SystemExit('bundle: a case failed')\n"
        f"places = {[str(evaluation.output_dir), str(evaluation.labels_dir), str(evaluation.dataset_json)]!r}\n"
        f"cases = {[{'case': case} for case in evaluation.cases]!r}\n"
        "run_on_all_ranks(Evaluator(), Slow(cases, *places))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "ranks.py"]
    done = launch(*command, cwd=tmp_path)
    assert done.returncode != 0
    assert "bundle: 1 of 3 cases are not in the metrics: oblique: out of memory" in done.stderr
    assert json.loads((evaluation.output_dir / "metrics.json").read_text())["failed"] == {"oblique": "out of memory"}


def test_the_overlay_of_several_processes_with_one(workspace, tmp_path):
    run(workspace / "bundle", workspace / "images", tmp_path / "out", "multi_gpu_inference")
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_other_formats_give_the_same_voxels(workspace, tmp_path):
    """One image of 16-bit integers as NIfTI, NRRD, MHA, MetaImage and DICOM series."""
    voxels = np.random.default_rng(3).integers(0, 200, (6, 24, 21))
    image = oblique_image(voxels)
    for name, ending in {"nifti": ".nii.gz", "plain": ".nii", "nrrd": ".nrrd", "mha": ".mha", "meta": ".mhd"}.items():
        for channel in range(2):
            (tmp_path / "in").mkdir(exist_ok=True)
            sitk.WriteImage(image + channel, str(tmp_path / "in" / f"{name}_{channel:04d}{ending}"))
    for channel in range(2):
        write_series(tmp_path / "in" / f"dicom_{channel:04d}", image + channel)
    run(workspace / "bundle", tmp_path / "in", tmp_path / "out")
    expected = sitk.ReadImage(str(tmp_path / "out" / "nifti.nii.gz"))
    assert len(np.unique(sitk.GetArrayFromImage(expected))) > 1
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"{n}.nii.gz" for n in ("dicom", "meta", "mha", "nifti", "nrrd", "plain")]
    for file in files:
        found = sitk.ReadImage(str(file))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
        np.testing.assert_allclose(found.GetOrigin(), image.GetOrigin(), atol=1e-5)
        np.testing.assert_allclose(found.GetDirection(), image.GetDirection(), atol=1e-5)
        np.testing.assert_allclose(found.GetSpacing(), image.GetSpacing(), atol=1e-5)

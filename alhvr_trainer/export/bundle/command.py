"""``alhvr export_bundle`` as a Python function; torch and nnU-Net are imported once it runs."""

from __future__ import annotations

from pathlib import Path

from alhvr_trainer.config.names import TRAINER_NAME, WEIGHTS_FILE
from alhvr_trainer.export.bundle.details import FIRST_VERSION, Details


def export_bundle(
    dataset: int | str | None = None,
    configuration: str | None = None,
    fold: int | str | tuple[int | str, ...] = 0,
    plans: str | None = None,
    output: str = "bundle",
    network: str = "a",
    trainer: str = TRAINER_NAME,
    weights_file: str = WEIGHTS_FILE,
    model_folder: str | None = None,
    mirroring: bool = True,
    name: str = "",
    version: str = FIRST_VERSION,
    author: str = "",
    license: str = "",
    data_source: str = "",
    changelog: str = "",
    evaluation: str | None = None,
) -> Path:
    """Write a trained model as a MONAI bundle that predicts what ``nnUNetv2_predict`` predicts.

    The bundle needs monai, pytorch-ignite and nnunetv2 to run, but not this package. It works for models of
    stock trainers as well (-t nnUNetTrainer -p nnUNetPlans). Its metadata and its card, docs/README.md, say what
    plans, dataset json and nnU-Net's validation of the model say, and what you add here.

    Args:
        dataset: id or name.
        configuration: e.g. 2d or 3d_fullres.
        fold: a fold, several ("0,1", an ensemble) or "all".
        plans: plans identifier; default: that of the only such model, else ALHVRPlans.
        output: the bundle's folder. A bundle from an earlier export is replaced once the new one is complete
            (what you added to it stays); any other folder that is not empty is refused.
        network: "a", "b", or "both" (an ensemble of the two).
        trainer: trainer class that the model was trained with.
        weights_file: name of the checkpoint file in the fold's folder.
        model_folder: nnU-Net's folder of the model, TRAINER__PLANS__CONFIGURATION with its fold_X folders, in
            place of dataset, configuration, plans and trainer; nnUNet_results need not be set.
        mirroring: the bundle mirrors at test time along the axes that the training allowed; False: not unless
            asked to (--use_mirroring True).
        name: what people see in the model zoo and in the card.
        version: of the bundle, MAJOR.MINOR.PATCH. Over a bundle with an earlier version, that one's history stays
            in the changelog; a lower version than the one there is refused.
        author: several are separated by semicolons.
        license: terms of the data and so of the weights; default: "licence" in dataset.json.
        data_source: where the training data are from; default: "reference" in dataset.json.
        changelog: what is new in this version.
        evaluation: the metrics.json that ``alhvr evaluate`` wrote about this model; gives the metadata's
            eval_metrics in place of nnU-Net's validation.

    Returns:
        The bundle's folder.

    Raises:
        InputError: the model, a checkpoint or the network asked for does not exist, the configuration is a
            cascade's second stage, an option makes no sense, or the folder cannot be written.

    Example:
        alhvr export_bundle -d 27 -c 2d -f 0 -p ALHVRPlans -o acdc_bundle
        python -m monai.bundle run inference --config_file acdc_bundle/configs/inference.json
            --dataset_dir IN --output_dir OUT

        alhvr export_bundle -m models/nnUNetTrainer__nnUNetPlans__2d -o heart --name 'Cardiac MR segmentation'
            --version 1.0.0 --author 'A. Doe; B. Roe' --license 'CC BY 4.0' --changelog 'first release'
    """
    from alhvr_trainer.export.bundle.export import export

    details = Details(name, version, author, license, data_source, changelog, mirroring)
    return export(
        dataset, configuration, fold, plans, output, network, trainer, weights_file, model_folder, details, evaluation
    )

"""A MONAI Deploy application around this bundle: a DICOM series in, a DICOM SEG out.

    pip install monai-deploy-app-sdk highdicom "monai>=1.5.1" pytorch-ignite nnunetv2
    python BUNDLE/docs/deploy_app.py -i DICOM_FOLDER -o OUTPUT_FOLDER

The bundle stays a folder (``models/model.pt`` and ``configs/``); leave out ``-m``, which is for TorchScript files.
The series that is segmented is the first CT, MR or PET of the study; give :data:`SERIES` other rules to choose by
description. The segments are named after the output channels in the bundle's ``metadata.json``; replace their codes by
those of your anatomy (:func:`segments`).

MONAI Deploy App SDK 4.0.0 exchanges the distances of rows and columns: with pixels that are not square the result is
wrong, and so :func:`refuse_oblong_pixels` ends the application.

Research only. This is not a medical device and must not be used for diagnosis or treatment.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pydicom
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application
from monai.deploy.core.domain import Image
from monai.deploy.core.io_type import IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import (
    BundleConfigNames,
    IOMapping,
    MonaiBundleInferenceOperator,
)
from pydicom.sr.codedict import codes

CONFIG = os.environ.get("BUNDLE_CONFIG", "inference")
"""``inference`` or ``inference_native``."""
BUNDLE = Path(__file__).resolve().parent.parent
SERIES = json.dumps({"selections": [{"name": "any series", "conditions": {"Modality": "(?i)(CT|MR|PT)"}}]})


class BundleApp(Application):
    """DICOM series -> volume -> the bundle's preprocessing, network and postprocessing -> DICOM SEG."""

    def compose(self) -> None:
        context = Application.init_app_context(self.argv)
        refuse_oblong_pixels(Path(context.input_path))
        os.chdir(BUNDLE)  # its configs take the current folder for the bundle's; the context's paths are absolute
        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), name="loader"
        )
        selector = DICOMSeriesSelectorOperator(self, rules=SERIES, name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        inference = MonaiBundleInferenceOperator(
            self,
            app_context=context,
            bundle_path=BUNDLE,
            bundle_config_names=BundleConfigNames(config_names=[CONFIG]),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            name="inference",
        )
        writer = DICOMSegmentationWriterOperator(
            self, segment_descriptions=segments(BUNDLE), output_folder=Path(context.output_path), name="writer"
        )
        series = {("study_selected_series_list", "study_selected_series_list")}
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, volume, series)
        self.add_flow(volume, inference, {("image", "image")})
        self.add_flow(selector, writer, series)
        self.add_flow(inference, writer, {("pred", "seg_image")})


def refuse_oblong_pixels(folder: Path) -> None:
    """End the application if an instance has pixels that are not square.

    Raises:
        SystemExit: it names the file.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            spacing = pydicom.dcmread(file, specific_tags=["PixelSpacing"]).get("PixelSpacing")
        except pydicom.errors.InvalidDicomError:
            continue
        rows, columns = map(float, spacing or (1, 1))
        if abs(rows - columns) > 1e-4:
            raise SystemExit(
                f"bundle: pixels of {file} are {rows:g} x {columns:g} mm; MONAI Deploy exchanges the two: use "
                "configs/inference.json with --dataset_dir instead"
            )


def segments(bundle: Path) -> list[SegmentDescription]:
    """One per foreground label, in the order of their values."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()
    return [
        SegmentDescription(
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Organ,
            algorithm_name=metadata["name"][:64],
            algorithm_family=codes.DCM.ArtificialIntelligence,
            algorithm_version=metadata["version"],
        )
        for name in names
        if name != "background"
    ]


if __name__ == "__main__":
    BundleApp().run()

"""nnU-Net's own preprocessing, sliding window and postprocessing as MONAI components for ``configs/inference.json``.

Needs monai, pytorch-ignite and nnunetv2, nothing else: it runs where the package that exported it is not installed.
Every number comes from nnU-Net's functions, so the files equal those of ``nnUNetv2_predict``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform, Orientation
from monai.utils import ImageMetaKey, MetaKeys
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from .input_error import InputError
from .memory import check_memory, results_device
from .nnunet_io import PROPERTIES, as_arrays, as_properties, properties_of_affine, to_monai, to_nnunet


class NNUNet:
    """Plans, dataset json and configuration of the model in this bundle, as nnU-Net's own objects.

    They are read from the folder that holds this package: programs that run bundles do not all tell it as
    ``bundle_root``.

    Args:
        configuration: name of the configuration in the plans, e.g. ``"2d"``.
    """

    def __init__(self, configuration: str) -> None:
        folder = Path(__file__).resolve().parents[1]
        self.dataset_json = load_json(str(folder / "dataset.json"))
        self.plans_manager = PlansManager(str(folder / "plans.json"))
        self.configuration_manager = self.plans_manager.get_configuration(configuration)
        self.label_manager = self.plans_manager.get_label_manager(self.dataset_json)
        self.file_ending: str = self.dataset_json["file_ending"]
        self.num_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.num_outputs = self.label_manager.num_segmentation_heads

    @property
    def reorients(self) -> bool:
        """Whether the model's reader turns every image to RAS."""
        return self.plans_manager.image_reader_writer_class.__name__.endswith("WithReorient")

    def shape_for_network(self, shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
        """Voxels per axis after resampling of an image (z, y, x) that is not cropped."""
        order = self.plans_manager.transpose_forward
        target = list(self.configuration_manager.spacing)
        old = [spacing[axis] for axis in order]
        return compute_new_shape([shape[axis] for axis in order], old, [*old[: 3 - len(target)], *target])


class NNUNetPreprocessd(MapTransform):
    """Preprocess a case as nnU-Net does: transpose, crop, normalize, resample.

    In: ``data[key]``, ``(C, x, y, z)`` (or ``(C, x, y)``), a ``MetaTensor`` with its affine, from a file or from
    memory. Out: ``data[key]``, a float32 ``MetaTensor`` in nnU-Net's axes; its metadata, affine and spatial shape
    stay those of the image and hold all that :class:`NNUNetSegmentd` needs to undo it.

    Raises:
        InputError: another number of channels or axes than the model's, or more voxels than memory can hold.
    """

    def __init__(self, keys: KeysCollection, nnunet: NNUNet) -> None:
        super().__init__(keys)
        self.nnunet = nnunet
        self.to_ras = Orientation("RAS")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = self._preprocess(data[key])
        return data

    def _preprocess(self, image: Any) -> MetaTensor:
        nnunet = self.nnunet
        if image.ndim not in (3, 4) or image.shape[0] != nnunet.num_channels:
            raise InputError(
                f"an image of shape {tuple(image.shape)}: the model needs {nnunet.num_channels} channel(s) first, "
                "then two or three axes"
            )
        image = image if isinstance(image, MetaTensor) else MetaTensor(image)
        if PROPERTIES not in image.meta and nnunet.reorients:
            image = self.to_ras(image)
        properties = as_properties(image.meta.get(PROPERTIES, {})) or properties_of_affine(image.affine)
        array = to_nnunet(np.asarray(image))
        check_memory(
            nnunet.shape_for_network(array.shape[1:], properties["spacing"]),
            array.shape[1:],
            nnunet.num_outputs,
            nnunet.num_channels,
        )
        preprocessor = nnunet.configuration_manager.preprocessor_class(verbose=False)
        found, _, properties = preprocessor.run_case_npy(
            array, None, properties, nnunet.plans_manager, nnunet.configuration_manager, nnunet.dataset_json
        )
        tensor = torch.from_numpy(found).to(torch.float32, memory_format=torch.contiguous_format)
        shape = np.asarray(image.shape[1:])
        return MetaTensor(tensor, meta={**image.meta, PROPERTIES: as_arrays(properties), MetaKeys.SPATIAL_SHAPE: shape})


class NNUNetInferer(Inferer):
    """nnU-Net's sliding window with Gaussian weights and mirroring; an ensemble is averaged after it.

    Args:
        nnunet: the model's plans.
        mirror_axes: spatial axes to mirror at test time, as the training allowed; None for none.
        device: where the network runs.
        overlap: of neighboring windows, as a share of the patch.
        use_mirroring: False is up to 4 (2D) or 8 (3D) times faster and a little less accurate.
        progress: a bar over the windows of each network.
    """

    def __init__(
        self,
        nnunet: NNUNet,
        mirror_axes: Sequence[int] | None,
        device: torch.device | str,
        overlap: float = 0.5,
        use_mirroring: bool = True,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise InputError(f"overlap is {overlap}; it must be at least 0 and less than 1")
        self.nnunet = nnunet
        self.mirror_axes = None if mirror_axes is None else tuple(mirror_axes)
        self.device = torch.device(device)
        with redirect_stdout(StringIO()):  # on a CPU it complains about an option that was not set
            self.predictor = nnUNetPredictor(
                tile_step_size=1 - overlap,
                use_mirroring=use_mirroring,
                perform_everything_on_device=self.device.type == "cuda",
                device=self.device,
                allow_tqdm=progress,
            )

    def without_mirroring(self) -> NNUNetInferer:
        """The same that takes the network's first answer."""
        predictor = self.predictor
        return NNUNetInferer(self.nnunet, None, self.device, 1 - predictor.tile_step_size, False, predictor.allow_tqdm)

    def _predict(self, image: torch.Tensor, network: nn.Module) -> torch.Tensor:
        self.predictor.manual_initialization(
            network,
            self.nnunet.plans_manager,
            self.nnunet.configuration_manager,
            [network.state_dict()],
            self.nnunet.dataset_json,
            "nnUNetTrainer",
            self.mirror_axes,
        )
        place = results_device(image.shape[1:], self.nnunet.num_outputs, self.device, image.shape[0])
        self.predictor.perform_everything_on_device = place.type == "cuda"
        return self.predictor.predict_logits_from_preprocessed_data(image)

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits of one preprocessed case: ``(1, C, *S)`` → ``(1, K, *S)``, half precision, on the CPU."""
        if inputs.shape[0] != 1:
            raise InputError(f"batch_size is {inputs.shape[0]}; cases differ in shape, it must be 1")
        image = inputs[0].as_tensor() if isinstance(inputs, MetaTensor) else inputs[0]
        # not isinstance: some programs import this package again after building the network
        members: list[Any] = [*getattr(network, "members", [network])]
        with _threads_of_nnunet(self.device):
            logits = self._predict(image, members[0])
            for member in members[1:]:
                logits += self._predict(image, member)
        if len(members) > 1:
            logits /= len(members)
        return logits[None]


@contextmanager
def _threads_of_nnunet(device: torch.device) -> Iterator[None]:
    """As many torch threads as ``nnUNetv2_predict`` takes: their number may change a result's last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(multiprocessing.cpu_count() if device.type == "cpu" else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _ToImaged(MapTransform):
    """To the image's own grid: resample, uncrop, transpose back, by nnU-Net.

    In: ``data[key]``, ``(C, *S)``, and ``data[image_key]`` as :class:`NNUNetPreprocessd` left it. Out:
    ``data[key]``, ``(C, x, y, z)``, a ``MetaTensor`` with the affine of the image. With ``data["case"]``, the file
    that ``SaveImaged`` writes gets this name.
    """

    def __init__(self, keys: KeysCollection, nnunet: NNUNet, image_key: str = "image") -> None:
        super().__init__(keys)
        self.nnunet = nnunet
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        meta = dict(data[self.image_key].meta)
        if "case" in data:
            meta[ImageMetaKey.FILENAME_OR_OBJ] = f"{data['case']}{self.nnunet.file_ending}"
        for key in self.key_iterator(data):
            found = self.in_image_space(data[key].cpu(), as_properties(meta[PROPERTIES]))
            found = to_monai(found, spatial_dims=len(meta[MetaKeys.SPATIAL_SHAPE]))
            data[key] = MetaTensor(torch.from_numpy(np.ascontiguousarray(found)), meta=meta)
        return data

    def in_image_space(self, values: torch.Tensor, properties: dict[str, Any]) -> np.ndarray:
        """(C, *S) to (C, z, y, x)."""
        raise NotImplementedError


class NNUNetSegmentd(_ToImaged):
    """From logits ``(K, *S)`` to labels ``(1, x, y, z)`` on the image's own grid: see :class:`_ToImaged`."""

    def in_image_space(self, values: torch.Tensor, properties: dict[str, Any]) -> np.ndarray:
        nnunet = self.nnunet
        labels: np.ndarray = convert_predicted_logits_to_segmentation_with_correct_shape(
            values.numpy(), nnunet.plans_manager, nnunet.configuration_manager, nnunet.label_manager, properties
        )
        return labels[None]


class NNUNetMapd(_ToImaged):
    """From maps ``(C, *S)`` to float32 maps ``(C, x, y, z)``, 0 where nnU-Net cropped: see :class:`_ToImaged`."""

    def in_image_space(self, values: torch.Tensor, properties: dict[str, Any]) -> np.ndarray:
        return in_image_space(values.float(), properties, self.nnunet.configuration_manager, self.nnunet.plans_manager)


def in_image_space(
    maps: torch.Tensor, properties: Mapping[str, Any], configuration: ConfigurationManager, plans: PlansManager
) -> np.ndarray:
    """Maps on the preprocessed grid, (C, *S), on the image's, (C, z, y, x); 0 where nnU-Net cropped the image.

    nnU-Net resamples and crops them as it does the probabilities of single regions.

    Args:
        maps: float.
        properties: nnU-Net's, of the case.
        configuration, plans: the model's.
    """
    one_region = LabelManager({"background": 0, "map": [1, 2]}, (1,), inference_nonlin=torch.Tensor.float)
    found = [
        convert_predicted_logits_to_segmentation_with_correct_shape(
            values[None], plans, configuration, one_region, properties, return_probabilities=True
        )[1][0]
        for values in maps
    ]
    return np.stack(found)


def regions_in_image_space(regions: torch.Tensor, *case: Any) -> np.ndarray:
    """ALHVR's regions, (*S) int from 1 to 3, on the image's grid, (z, y, x) uint8; 0 where nnU-Net cropped the image.

    Args:
        regions: on the preprocessed grid.
        case: further arguments of :func:`in_image_space`.
    """
    shares = in_image_space(torch.stack([regions == number for number in (1, 2, 3)]).float(), *case)
    found: np.ndarray = (shares.argmax(axis=0) + 1) * (shares.max(axis=0) > 0)
    return found.astype(np.uint8)

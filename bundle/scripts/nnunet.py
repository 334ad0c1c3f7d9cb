"""nnU-Net's own reader, preprocessing, sliding window and writer as MONAI components for the bundle's config.

Needs monai, pytorch-ignite and nnunetv2, nothing else: it runs where its author's package is not installed.
Every number comes from nnU-Net's functions, so the files equal those of ``nnUNetv2_predict``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from torch import nn
from tqdm import tqdm

CHANNEL_SUFFIX = 5  # "_0000": how nnU-Net marks the channel of a file


class InputError(ValueError):
    """Bad input: the message is one line that says what was found and what to do."""


class NNUNet:
    """Plans, dataset json and configuration of the model in this bundle, as nnU-Net's own objects.

    Args:
        bundle_root: folder that holds ``plans.json`` and ``dataset.json``.
        configuration: name of the configuration in the plans, e.g. ``"2d"``.
    """

    def __init__(self, bundle_root: str, configuration: str) -> None:
        self.dataset_json = load_json(str(Path(bundle_root) / "dataset.json"))
        self.plans_manager = PlansManager(str(Path(bundle_root) / "plans.json"))
        self.configuration_manager = self.plans_manager.get_configuration(configuration)
        self.label_manager = self.plans_manager.get_label_manager(self.dataset_json)
        self.file_ending: str = self.dataset_json["file_ending"]
        self.num_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )

    def network(self, members: int = 1) -> nn.Module:
        """The network of the plans (untrained); with several ``members`` an :class:`Ensemble` of them."""
        networks = [self._network() for _ in range(members)]
        return networks[0] if members == 1 else Ensemble(networks)

    def _network(self) -> nn.Module:
        return get_network_from_plans(
            self.configuration_manager.network_arch_class_name,
            self.configuration_manager.network_arch_init_kwargs,
            self.configuration_manager.network_arch_init_kwargs_req_import,
            self.num_channels,
            self.label_manager.num_segmentation_heads,
            allow_init=False,
            deep_supervision=False,
        )

    def cases(self, dataset_dir: str) -> list[dict[str, Any]]:
        """The cases in a folder: ``[{"case": name, "image": [file of each channel]}]``."""
        if not Path(dataset_dir).is_dir():
            return []
        file_lists = create_lists_from_splitted_dataset_folder(str(dataset_dir), self.file_ending, num_processes=1)
        cut = len(self.file_ending) + CHANNEL_SUFFIX
        return [{"case": Path(files[0]).name[:-cut], "image": files} for files in file_lists if files]

    def check_cases(self, dataset_dir: str) -> None:
        """See that the folder holds cases and each of them every channel.

        Raises:
            InputError: the folder is missing or empty, or a case has too few or too many channels.
        """
        folder = Path(dataset_dir)
        if not folder.is_dir():
            raise InputError(f"dataset_dir {folder} does not exist")
        cases = self.cases(dataset_dir)
        if not cases:
            raise InputError(f"no image <case>_0000{self.file_ending} in dataset_dir {folder}")
        for case in cases:
            if len(case["image"]) != self.num_channels:
                names = ", ".join(Path(file).name for file in case["image"])
                raise InputError(
                    f"case {case['case']} in {folder} has {len(case['image'])} channels ({names}), "
                    f"the model needs {self.num_channels}"
                )

    def check_cases_or_exit(self, dataset_dir: str) -> None:
        """As :meth:`check_cases`, but end the program: MONAI would wrap the error into pages of traceback."""
        try:
            self.check_cases(dataset_dir)
        except InputError as error:
            raise SystemExit(f"bundle: {error}") from error


class Ensemble(nn.Module):
    """Several networks of the same architecture; ``forward`` averages their logits.

    :class:`NNUNetInferer` averages after the sliding window instead, as nnU-Net does with folds.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(image) for member in self.members]).mean(0)


class NNUNetPreprocessd(MapTransform):
    """Read and preprocess a case as nnU-Net does: transpose, crop, normalise, resample.

    In: ``data[key]``, the files of the channels. Out: ``data[key]``, float32 of shape ``(C, *S)``, and
    ``data["properties"]``, all that :class:`NNUNetWrited` needs to undo it.
    """

    def __init__(self, keys: KeysCollection, nnunet: NNUNet) -> None:
        super().__init__(keys)
        self.nnunet = nnunet

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        preprocessor = self.nnunet.configuration_manager.preprocessor_class(verbose=False)
        for key in self.key_iterator(data):
            image, _, data["properties"] = preprocessor.run_case(
                data[key],
                None,
                self.nnunet.plans_manager,
                self.nnunet.configuration_manager,
                self.nnunet.dataset_json,
            )
            data[key] = torch.from_numpy(image).to(torch.float32, memory_format=torch.contiguous_format)
        return data


class NNUNetInferer(Inferer):
    """nnU-Net's sliding window with Gaussian weights and mirroring; an ensemble is averaged after it.

    Args:
        nnunet: the model's plans.
        mirror_axes: spatial axes to mirror at test time, as the training allowed; None for none.
        device: where the network runs.
        tile_step_size: step of the window as a share of the patch.
        use_mirroring: False is up to 4 (2D) or 8 (3D) times faster and a little less accurate.
    """

    def __init__(
        self,
        nnunet: NNUNet,
        mirror_axes: Sequence[int] | None,
        device: torch.device | str,
        tile_step_size: float = 0.5,
        use_mirroring: bool = True,
    ) -> None:
        super().__init__()
        self.nnunet = nnunet
        self.mirror_axes = None if mirror_axes is None else tuple(mirror_axes)
        self.device = torch.device(device)
        with redirect_stdout(StringIO()):  # on a CPU it reports an option as unusable that nobody set
            self.predictor = nnUNetPredictor(
                tile_step_size=tile_step_size,
                use_mirroring=use_mirroring,
                perform_everything_on_device=self.device.type == "cuda",
                device=self.device,
                allow_tqdm=False,
            )

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
        return self.predictor.predict_logits_from_preprocessed_data(image)

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits of one preprocessed case: ``(1, C, *S)`` → ``(1, K, *S)``, half precision, on the CPU."""
        if inputs.shape[0] != 1:
            raise InputError(f"batch_size is {inputs.shape[0]}; cases differ in shape, it must be 1")
        # not isinstance: some programs import this package anew after they have built the network
        members = list(network.members) if hasattr(network, "members") else [network]
        with _threads_of_nnunet(self.device):
            logits = self._predict(inputs[0], members[0])
            for member in members[1:]:
                logits += self._predict(inputs[0], member)
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


class NNUNetWrited(MapTransform):
    """Bring logits back to the image's grid and write the segmentation ``output_dir/<case><file ending>``.

    In: ``data[key]``, logits ``(1, K, *S)``, and the batch's ``data["properties"]`` and ``data["case"]``.
    """

    def __init__(self, keys: KeysCollection, nnunet: NNUNet, output_dir: str) -> None:
        super().__init__(keys)
        self.nnunet = nnunet
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(data):
            export_prediction_from_logits(
                data[key][0].cpu().numpy(),
                data["properties"][0],
                self.nnunet.configuration_manager,
                self.nnunet.plans_manager,
                self.nnunet.dataset_json,
                str(self.output_dir / data["case"][0]),
            )
        return data


def collate_case(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of one case; nnU-Net's properties stay as they are, which the usual collate would not leave."""
    return {
        "image": torch.stack([item["image"] for item in batch]),
        "properties": [item["properties"] for item in batch],
        "case": [item["case"] for item in batch],
    }


class CaseProgress:
    """Handler: a progress bar over the cases that names the one being predicted."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_STARTED, self._show)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self._bar.update())
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._bar.close())

    def _open(self, engine: Engine) -> None:
        self._bar = tqdm(total=engine.state.epoch_length, unit="case", desc="predicting")

    def _show(self, engine: Engine) -> None:
        self._bar.set_postfix_str(engine.state.batch["case"][0])
